//! Profiles as messages of profile.proto, which `go tool pprof` and many others read.
//!
//! The message types stand here rather than in a generated file: they are eight, and have not changed in years.

use std::collections::HashMap;
use std::io::Write;
use std::time::SystemTime;

use flate2::Compression;
use flate2::write::GzEncoder;
use prost::Message;

use super::Profile;
use super::modules::{Modules, Symbols};

#[derive(Clone, PartialEq, Message)]
pub(super) struct PprofProfile {
    #[prost(message, repeated, tag = "1")]
    pub(super) sample_type: Vec<ValueType>,
    #[prost(message, repeated, tag = "2")]
    pub(super) sample: Vec<Sample>,
    #[prost(message, repeated, tag = "3")]
    pub(super) mapping: Vec<Mapping>,
    #[prost(message, repeated, tag = "4")]
    pub(super) location: Vec<Location>,
    #[prost(message, repeated, tag = "5")]
    pub(super) function: Vec<Function>,
    /// The first is empty; others refer to them by their numbers.
    #[prost(string, repeated, tag = "6")]
    pub(super) string_table: Vec<String>,
    #[prost(int64, tag = "9")]
    pub(super) time_nanos: i64,
    #[prost(int64, tag = "10")]
    pub(super) duration_nanos: i64,
    #[prost(message, optional, tag = "11")]
    pub(super) period_type: Option<ValueType>,
    #[prost(int64, tag = "12")]
    pub(super) period: i64,
    #[prost(int64, repeated, tag = "13")]
    pub(super) comment: Vec<i64>,
    #[prost(int64, tag = "14")]
    pub(super) default_sample_type: i64,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct ValueType {
    #[prost(int64, tag = "1")]
    pub(super) kind: i64,
    #[prost(int64, tag = "2")]
    pub(super) unit: i64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Sample {
    /// Innermost first.
    #[prost(uint64, repeated, tag = "1")]
    pub(super) location_id: Vec<u64>,
    #[prost(int64, repeated, tag = "2")]
    pub(super) value: Vec<i64>,
    #[prost(message, repeated, tag = "3")]
    pub(super) label: Vec<Label>,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct Label {
    #[prost(int64, tag = "1")]
    pub(super) key: i64,
    #[prost(int64, tag = "2")]
    pub(super) text: i64,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct Mapping {
    #[prost(uint64, tag = "1")]
    pub(super) id: u64,
    #[prost(uint64, tag = "2")]
    pub(super) memory_start: u64,
    #[prost(uint64, tag = "3")]
    pub(super) memory_limit: u64,
    #[prost(uint64, tag = "4")]
    pub(super) file_offset: u64,
    #[prost(int64, tag = "5")]
    pub(super) filename: i64,
    #[prost(bool, tag = "7")]
    pub(super) has_functions: bool,
    #[prost(bool, tag = "8")]
    pub(super) has_filenames: bool,
    #[prost(bool, tag = "9")]
    pub(super) has_line_numbers: bool,
    #[prost(bool, tag = "10")]
    pub(super) has_inline_frames: bool,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Location {
    #[prost(uint64, tag = "1")]
    pub(super) id: u64,
    #[prost(uint64, tag = "2")]
    pub(super) mapping_id: u64,
    #[prost(uint64, tag = "3")]
    pub(super) address: u64,
    /// Innermost (inlined) first.
    #[prost(message, repeated, tag = "4")]
    pub(super) line: Vec<Line>,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct Line {
    #[prost(uint64, tag = "1")]
    pub(super) function_id: u64,
    #[prost(int64, tag = "2")]
    pub(super) line: i64,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct Function {
    #[prost(uint64, tag = "1")]
    pub(super) id: u64,
    #[prost(int64, tag = "2")]
    pub(super) name: i64,
    #[prost(int64, tag = "3")]
    pub(super) system_name: i64,
    #[prost(int64, tag = "4")]
    pub(super) filename: i64,
}

/// Encodes a profile of CPU time.
pub(super) fn encode(profile: &Profile) -> Vec<u8> {
    let mut builder = Builder::new(&profile.modules);
    let period = 1_000_000_000 / i64::from(profile.hz);
    let samples = builder.value_type("samples", "count");
    let cpu = builder.value_type("cpu", "nanoseconds");
    builder.message.sample_type = vec![samples, cpu];
    (builder.message.period_type, builder.message.period) = (Some(cpu), period);
    builder.message.time_nanos = nanoseconds(profile.began);
    builder.message.duration_nanos = i64::try_from(profile.duration.as_nanos()).unwrap_or(i64::MAX);
    if profile.lost > 0 {
        let comment = format!(
            "{} periods of CPU time are missing: this machine was too busy to note them",
            profile.lost
        );
        let comment = builder.text(&comment);
        builder.message.comment.push(comment);
    }
    for ((thread, addresses), count) in &profile.stacks {
        builder.sample(addresses, vec![*count, *count * period], Some(thread));
    }
    builder.finish()
}

pub(super) fn nanoseconds(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// Puts a message together: each text, function and address once.
pub(super) struct Builder<'a> {
    pub(super) message: PprofProfile,
    modules: &'a Modules,
    symbols: Symbols<'a>,
    texts: HashMap<String, i64>,
    functions: HashMap<(i64, i64), u64>,
    locations: HashMap<u64, u64>,
}

impl<'a> Builder<'a> {
    pub(super) fn new(modules: &'a Modules) -> Self {
        let mut builder = Self {
            message: PprofProfile::default(),
            modules,
            symbols: Symbols::new(modules),
            texts: HashMap::new(),
            functions: HashMap::new(),
            locations: HashMap::new(),
        };
        builder.text("");
        for (number, mapped) in modules.all().iter().enumerate() {
            let filename = builder.text(&mapped.name);
            builder.message.mapping.push(Mapping {
                id: number as u64 + 1,
                memory_start: mapped.range.start,
                memory_limit: mapped.range.end,
                file_offset: mapped.offset,
                filename,
                // They are all looked up here: no reader needs this very file for that.
                has_functions: true,
                has_filenames: true,
                has_line_numbers: true,
                has_inline_frames: true,
            });
        }
        builder
    }

    pub(super) fn text(&mut self, text: &str) -> i64 {
        if let Some(number) = self.texts.get(text) {
            return *number;
        }
        let number = self.message.string_table.len() as i64;
        self.message.string_table.push(text.to_owned());
        self.texts.insert(text.to_owned(), number);
        number
    }

    pub(super) fn value_type(&mut self, kind: &str, unit: &str) -> ValueType {
        ValueType { kind: self.text(kind), unit: self.text(unit) }
    }

    /// Adds a stack, given innermost first.
    pub(super) fn sample(&mut self, addresses: &[u64], value: Vec<i64>, thread: Option<&str>) {
        let location_id = addresses.iter().map(|address| self.location(*address)).collect();
        let label = thread.map(|name| Label { key: self.text("thread"), text: self.text(name) });
        self.message.sample.push(Sample { location_id, value, label: label.into_iter().collect() });
    }

    fn location(&mut self, address: u64) -> u64 {
        if let Some(id) = self.locations.get(&address) {
            return *id;
        }
        let places = self.symbols.places(address);
        let line = places
            .iter()
            .map(|place| Line {
                function_id: self.function(&place.function, &place.symbol, &place.file),
                line: place.line,
            })
            .collect();
        let id = self.message.location.len() as u64 + 1;
        let mapping_id = self.modules.find(address).map_or(0, |number| number as u64 + 1);
        self.message.location.push(Location { id, mapping_id, address, line });
        self.locations.insert(address, id);
        id
    }

    fn function(&mut self, name: &str, symbol: &str, file: &str) -> u64 {
        let (name, system_name, filename) = (self.text(name), self.text(symbol), self.text(file));
        let next = self.message.function.len() as u64 + 1;
        let id = *self.functions.entry((system_name, filename)).or_insert(next);
        if id == next {
            self.message.function.push(Function { id, name, system_name, filename });
        }
        id
    }

    /// Returns the message, compressed.
    pub(super) fn finish(self) -> Vec<u8> {
        let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
        packed
            .write_all(&self.message.encode_to_vec())
            .and_then(|()| packed.finish())
            .expect("memory takes whatever is written to it")
    }
}
