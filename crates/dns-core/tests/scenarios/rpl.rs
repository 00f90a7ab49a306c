//! Reads scenarios: what upstreams answer, what a client asks, what it must hear.
//!
//! ```text
//! RANGE_BEGIN 0 9                 STEP 1 QUERY              STEP 2 CHECK_ANSWER
//! ENTRY_BEGIN                     ENTRY_BEGIN               ENTRY_BEGIN
//! MATCH qname qtype               REPLY RD                  MATCH all ttl
//! REPLY QR NOERROR                SECTION QUESTION          REPLY QR RD NOERROR
//! SECTION QUESTION                example.com. IN A         …
//! example.com. IN A               ENTRY_END                 ENTRY_END
//! ENTRY_END                                                 STEP 3 TIME_PASSES ELAPSE 1800
//! RANGE_END
//! ```
//!
//! A range holds while steps of those numbers are done. Of the entries that match a query the last is taken.

use std::str::FromStr;

use domain::base::iana::{Class, Rtype};
use domain::base::{Message, MessageBuilder, Name, ParsedName, ToName, Ttl};
use domain::rdata::AllRecordData;
use domain::zonefile::inplace::{self, Zonefile};

/// A scenario, read.
#[derive(Debug, Default)]
pub(crate) struct Scenario {
    /// What the server is told before it starts, a line each.
    pub(crate) config: Vec<String>,
    /// What upstreams answer.
    pub(crate) ranges: Vec<Range>,
    /// What is done, in order.
    pub(crate) steps: Vec<Step>,
}

/// Answers of an upstream during steps of these numbers.
#[derive(Debug, Default)]
pub(crate) struct Range {
    /// The first of them.
    pub(crate) first: u32,
    /// The last of them.
    pub(crate) last: u32,
    /// Its answers.
    pub(crate) entries: Vec<Entry>,
}

/// Something that is done.
#[derive(Debug)]
pub(crate) struct Step {
    /// Its number.
    pub(crate) number: u32,
    /// What.
    pub(crate) act: Act,
}

/// What is done.
#[derive(Debug)]
pub(crate) enum Act {
    /// A client asks, from this address if one is given.
    Query(Entry, Option<String>),
    /// The client must have heard this.
    Check(Entry),
    /// So many seconds pass.
    Pass(u64),
    /// Every upstream falls silent (`off`) or answers again (`on`).
    Upstreams(bool),
    /// The client hears nothing for so many milliseconds.
    Silence(u64),
}

/// A message, and what of it counts.
#[derive(Clone, Debug, Default)]
pub(crate) struct Entry {
    /// What must be equal.
    pub(crate) matches: Vec<String>,
    /// What is taken from the query.
    pub(crate) adjust: Vec<String>,
    /// Flags, opcode and response code.
    pub(crate) reply: Vec<String>,
    question: String,
    sections: [Vec<String>; 3],
    /// The heading of the lines being read.
    heading: String,
    /// EDNS options, as they are on the wire.
    pub(crate) options: Vec<u8>,
}

impl Scenario {
    /// The answer made of the server's own data, if there is any for this query.
    pub(crate) fn local_data(&self, query: &[u8]) -> Result<Option<Vec<u8>>, String> {
        let lines = self.config.iter().filter_map(|line| line.strip_prefix("local-data:"));
        let records: Vec<_> = lines.map(|line| line.trim().trim_matches('"').trim().to_owned()).collect();
        let asked = Message::from_octets(query).map_err(|error| error.to_string())?;
        let Some(question) = asked.first_question() else { return Ok(None) };
        let mut answers = Vec::new();
        for (line, record) in records.iter().zip(self::records(&records)?) {
            if record.owner().name_eq(question.qname()) && record.rtype() == question.qtype() {
                answers.push(line.clone());
            }
        }
        if answers.is_empty() {
            return Ok(None);
        }
        let entry = Entry {
            adjust: vec!["copy_query".to_owned()],
            reply: ["QR", "RD", "AA"].map(str::to_owned).to_vec(),
            question: format!("{} {} {}", question.qname(), question.qclass(), question.qtype()),
            sections: [answers, Vec::new(), Vec::new()],
            ..Entry::default()
        };
        entry.message(asked.header().id(), Some(query)).map(Some)
    }
}

/// Reads a scenario. `Err` says which line is not understood.
pub(crate) fn parse(text: &str) -> Result<Scenario, String> {
    let mut scenario = Scenario::default();
    let mut lines =
        text.lines().enumerate().map(|(n, line)| (n + 1, strip(line))).filter(|(_, l)| !l.is_empty());
    for (_, line) in lines.by_ref().take_while(|(_, line)| *line != "CONFIG_END") {
        scenario.config.push(line.to_owned());
    }
    while let Some((n, line)) = lines.next() {
        let words: Vec<_> = line.split_whitespace().collect();
        let number = |at: usize| {
            words.get(at).and_then(|word| word.parse().ok()).ok_or(format!("{n}: no number in `{line}`"))
        };
        match words[..] {
            ["SCENARIO_BEGIN", ..] => {}
            ["SCENARIO_END"] => break,
            ["RANGE_BEGIN", ..] => {
                let mut range = Range { first: number(1)?, last: number(2)?, entries: Vec::new() };
                for (n, line) in lines.by_ref().take_while(|(_, line)| *line != "RANGE_END") {
                    match line.split_whitespace().next() {
                        // There is one upstream, which knows what all of them know.
                        Some("ADDRESS") => {}
                        Some("ENTRY_BEGIN") => range.entries.push(Entry::default()),
                        _ => {
                            let entry =
                                range.entries.last_mut().ok_or(format!("{n}: `{line}` in no entry"))?;
                            entry.read(line).map_err(|problem| format!("{n}: {problem}"))?;
                        }
                    }
                }
                scenario.ranges.push(range);
            }
            ["STEP", _, "TIME_PASSES", "ELAPSE", seconds, ..] => {
                let seconds = seconds.parse().map_err(|_| format!("{n}: no number in `{line}`"))?;
                scenario.steps.push(Step { number: number(1)?, act: Act::Pass(seconds) });
            }
            ["STEP", _, "NO_ANSWER", "WITHIN", millis] => {
                let millis = millis.parse().map_err(|_| format!("{n}: no number in `{line}`"))?;
                scenario.steps.push(Step { number: number(1)?, act: Act::Silence(millis) });
            }
            ["STEP", _, "UPSTREAMS", state @ ("on" | "off")] => {
                scenario.steps.push(Step { number: number(1)?, act: Act::Upstreams(state == "on") });
            }
            ["STEP", _, kind @ ("QUERY" | "CHECK_ANSWER"), ref rest @ ..] => {
                let mut entry = Entry::default();
                for (n, line) in lines.by_ref().take_while(|(_, line)| *line != "ENTRY_END") {
                    entry.read(line).map_err(|problem| format!("{n}: {problem}"))?;
                }
                let from = match rest {
                    ["ADDRESS", address] => Some((*address).to_owned()),
                    [] => None,
                    _ => return Err(format!("{n}: `{line}` is not understood")),
                };
                let act = if kind == "QUERY" { Act::Query(entry, from) } else { Act::Check(entry) };
                scenario.steps.push(Step { number: number(1)?, act });
            }
            _ => return Err(format!("{n}: `{line}` is not understood")),
        }
    }
    Ok(scenario)
}

/// The line without its comment.
fn strip(line: &str) -> &str {
    let mut quoted = false;
    let end = line.find(|c| {
        quoted ^= c == '"';
        c == ';' && !quoted
    });
    line[..end.unwrap_or(line.len())].trim()
}

impl Entry {
    fn read(&mut self, line: &str) -> Result<(), String> {
        let words = || line.split_whitespace().skip(1).map(str::to_owned);
        match line.split_whitespace().next().unwrap_or_default() {
            "ENTRY_BEGIN" | "ENTRY_END" | "HEX_EDNSDATA_END" => {}
            "MATCH" => self.matches.extend(words()),
            "ADJUST" => self.adjust.extend(words()),
            "REPLY" | "OPCODE" => self.reply.extend(words()),
            "SECTION" => self.heading = words().next().unwrap_or_default(),
            "HEX_EDNSDATA_BEGIN" => self.heading = "EDNS".to_owned(),
            _ => match self.heading.as_str() {
                "QUESTION" => self.question = line.to_owned(),
                "ANSWER" => self.sections[0].push(line.to_owned()),
                "AUTHORITY" => self.sections[1].push(line.to_owned()),
                "ADDITIONAL" => self.sections[2].push(line.to_owned()),
                "EDNS" => {
                    let bytes = line.split_whitespace().map(|byte| u8::from_str_radix(byte, 16));
                    let bytes: Result<Vec<_>, _> = bytes.collect();
                    self.options.extend(bytes.map_err(|_| format!("`{line}` is not hexadecimal"))?);
                }
                _ => return Err(format!("`{line}` is not understood")),
            },
        }
        Ok(())
    }

    /// Whether this counts when messages are compared.
    pub(crate) fn compares(&self, what: &str) -> bool {
        let all = self.matches.iter().any(|word| word == "all");
        all && !["ttl", "at_once", "ednsdata", "TCP", "UDP"].contains(&what)
            || self.matches.iter().any(|word| word == what)
    }

    /// Whether a word stands in its flags.
    pub(crate) fn says(&self, word: &str) -> bool {
        self.reply.iter().any(|other| other == word)
    }

    /// The name, type and class asked for.
    pub(crate) fn question(&self) -> Result<(Name<Vec<u8>>, Rtype, Class), String> {
        let line = &self.question;
        let bad = || format!("`{line}` is no question");
        let [name, rest @ ..] = &line.split_whitespace().collect::<Vec<_>>()[..] else { return Err(bad()) };
        let (class, kind) = match rest {
            [class, kind] => (Class::from_str(class).map_err(|_| bad())?, *kind),
            [kind] => (Class::IN, *kind),
            _ => return Err(bad()),
        };
        Ok((Name::from_str(name).map_err(|_| bad())?, Rtype::from_str(kind).map_err(|_| bad())?, class))
    }

    /// The response code.
    pub(crate) fn rcode(&self) -> u16 {
        let codes = [
            ("FORMERR", 1),
            ("SERVFAIL", 2),
            ("NXDOMAIN", 3),
            ("NOTIMP", 4),
            ("REFUSED", 5),
            ("NOTAUTH", 9),
            ("BADVERS", 16),
            ("BADCOOKIE", 23),
        ];
        codes.iter().find(|(word, _)| self.says(word)).map_or(0, |(_, code)| *code)
    }

    /// The opcode.
    pub(crate) fn opcode(&self) -> u8 {
        [("NOTIFY", 4), ("UPDATE", 5)].iter().find(|(word, _)| self.says(word)).map_or(0, |(_, code)| *code)
    }

    /// Makes the message, with this id, and the question of `asked` if there is one.
    pub(crate) fn message(&self, id: u16, asked: Option<&[u8]>) -> Result<Vec<u8>, String> {
        let (name, kind, class) = self.question()?;
        let problem = |error: &dyn std::fmt::Display| format!("{name}: {error}");
        let mut builder = MessageBuilder::new_vec();
        builder.header_mut().set_id(id);
        let mut question = builder.question();
        match asked.filter(|_| self.adjust.iter().any(|word| word == "copy_query")) {
            Some(asked) => {
                let asked = Message::from_octets(asked).map_err(|error| problem(&error))?;
                let first = asked.first_question().ok_or("a query without a question")?;
                question.push(first).map_err(|error| problem(&error))?;
            }
            None => question.push((&name, kind, class)).map_err(|error| problem(&error))?,
        }
        let mut answer = question.answer();
        for record in records(&self.sections[0])? {
            answer.push(record).map_err(|error| problem(&error))?;
        }
        let mut authority = answer.authority();
        for record in records(&self.sections[1])? {
            authority.push(record).map_err(|error| problem(&error))?;
        }
        let mut additional = authority.additional();
        for record in records(&self.sections[2])? {
            additional.push(record).map_err(|error| problem(&error))?;
        }
        let edns = self.says("DO") || !self.options.is_empty();
        if edns {
            let opt = |opt: &mut domain::base::message_builder::OptBuilder<'_, _>| {
                opt.set_udp_payload_size(1232);
                opt.set_dnssec_ok(self.says("DO"));
                opt.set_rcode(self.rcode().try_into().unwrap_or(domain::base::iana::OptRcode::NOERROR));
                Ok(())
            };
            additional.opt(opt).map_err(|error| problem(&error))?;
        }
        let mut message = additional.finish();
        if !self.options.is_empty() {
            // The OPT record stands last and has no options yet.
            let at = message.len() - 2;
            message.truncate(at);
            message.extend((self.options.len() as u16).to_be_bytes());
            message.extend(&self.options);
        }
        let bit = |word, bit: u8| if self.says(word) { bit } else { 0 };
        message[2] = bit("QR", 0x80) | self.opcode() << 3 | bit("AA", 4) | bit("TC", 2) | bit("RD", 1);
        message[3] = bit("RA", 0x80) | bit("AD", 0x20) | bit("CD", 0x10) | (self.rcode() & 15) as u8;
        Ok(message)
    }
}

/// The options of a message's OPT record, as they are on the wire.
pub(crate) fn options(bytes: &[u8]) -> Result<Vec<u8>, String> {
    let message = Message::from_octets(bytes).map_err(|error| error.to_string())?;
    let Some(opt) = message.opt() else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for option in opt.opt().iter::<domain::base::opt::UnknownOptData<_>>() {
        let option = option.map_err(|error| error.to_string())?;
        let data: &[u8] = option.as_slice();
        found.extend(option.code().to_int().to_be_bytes());
        found.extend((data.len() as u16).to_be_bytes());
        found.extend(data);
    }
    Ok(found)
}

fn records(lines: &[String]) -> Result<Vec<inplace::ScannedRecord>, String> {
    let mut found = Vec::new();
    for line in lines {
        let mut zone = Zonefile::new();
        zone.set_origin(Name::root());
        zone.set_default_class(if line.contains(" CH ") { Class::CH } else { Class::IN });
        zone.extend_from_slice(b"$TTL 3600\n");
        zone.extend_from_slice(line.as_bytes());
        zone.extend_from_slice(b"\n");
        match zone.next_entry() {
            Ok(Some(inplace::Entry::Record(record))) => found.push(record),
            other => return Err(format!("`{line}` is no record: {other:?}")),
        }
    }
    Ok(found)
}

/// The records of a message's answer, authority and additional section, as sorted text; without OPT records.
pub(crate) fn sections(bytes: &[u8], ttl: bool) -> Result<[Vec<String>; 3], String> {
    let message = Message::from_octets(bytes).map_err(|error| error.to_string())?;
    let (_, answer, authority, additional) = message.sections().map_err(|error| error.to_string())?;
    let mut all = [Vec::new(), Vec::new(), Vec::new()];
    for (text, section) in all.iter_mut().zip([answer, authority, additional]) {
        for record in section {
            let record = record.map_err(|error| error.to_string())?;
            let record = record
                .to_record::<AllRecordData<_, ParsedName<_>>>()
                .map_err(|error| error.to_string())?
                .ok_or("a record of no type")?;
            if record.rtype() == Rtype::OPT {
                continue;
            }
            let shown = if ttl { record.ttl() } else { Ttl::from_secs(0) };
            let (owner, kind) = (record.owner().to_string().to_lowercase(), record.rtype());
            text.push(format!("{owner} {} {} {kind} {}", shown.as_secs(), record.class(), record.data()));
        }
        text.sort();
    }
    Ok(all)
}
