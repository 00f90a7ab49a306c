//! The code of this process: which files it comes from, how its stacks are walked, what its addresses are called.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use addr2line::Loader;
use forebay::sys::sample::Sample;
use framehop::{
    CacheNative, ExplicitModuleSectionInfo, MayAllocateDuringUnwind, Module, UnwindRegsNative, Unwinder,
    UnwinderNative,
};
use object::{Object, ObjectSection, ObjectSegment, ObjectSymbol, ReadCache, SymbolKind};

/// Frames of a stack that are kept, from the innermost.
const FRAMES_MAX: usize = 512;

/// The vDSO is a few pages; nothing larger is taken for it.
const VDSO_MAX: u64 = 1 << 20;

/// All files whose code is mapped.
pub(super) struct Modules {
    all: Vec<Mapped>,
    unwinder: UnwinderNative<Vec<u8>, MayAllocateDuringUnwind>,
    cache: CacheNative<MayAllocateDuringUnwind>,
}

/// A file whose code is mapped.
#[derive(Clone, Debug)]
pub(super) struct Mapped {
    /// Where its code is.
    pub(super) range: Range<u64>,
    /// From where in the file.
    pub(super) offset: u64,
    /// What is called its name: a path, or `[vdso]`.
    pub(super) name: String,
    /// What addresses of the file lack to be those of memory.
    bias: u64,
    /// Where it can be read; the program itself by a way that stays when it is replaced.
    path: Option<PathBuf>,
    /// What it offers to others, by address: all that libraries without debug information have.
    offers: Vec<Offer>,
}

/// A function that a library offers.
#[derive(Clone, Debug)]
struct Offer {
    range: Range<u64>,
    name: String,
}

/// What an address is called.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    /// The function, with its path.
    pub(super) function: String,
    /// The function as the linker calls it.
    pub(super) symbol: String,
    /// The source file, if known.
    pub(super) file: String,
    /// The line in it; 0 if not known.
    pub(super) line: i64,
}

impl std::fmt::Debug for Modules {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Modules").field("all", &self.all).finish_non_exhaustive()
    }
}

impl Modules {
    /// Finds what is mapped now.
    pub(super) fn of_this_process() -> io::Result<Self> {
        let maps = fs::read_to_string("/proc/self/maps")?;
        let program = fs::read_link("/proc/self/exe")?;
        let mut all = Vec::new();
        let mut unwinder = UnwinderNative::new();
        for line in maps.lines().filter_map(Line::read).filter(|line| line.is_code) {
            let path = match line.name {
                // What was deleted has that behind its name, in both.
                name if program.as_os_str() == name => Some(PathBuf::from("/proc/self/exe")),
                name if name.starts_with('/') => Some(PathBuf::from(name)),
                "[vdso]" => None,
                _ => continue,
            };
            // A file that cannot be read, as when a library was replaced, has no names: its addresses are shown.
            let Ok(read) = read_file(&line, path.as_ref()) else { continue };
            let FileRead { bias, sections, offers } = read;
            let name = line.name.to_owned();
            unwinder.add_module(Module::new(name.clone(), line.range.clone(), bias, sections));
            all.push(Mapped { range: line.range, offset: line.offset, name, bias, path, offers });
        }
        if all.is_empty() {
            return Err(io::Error::other("none of what is in /proc/self/maps could be read"));
        }
        Ok(Self { all, unwinder, cache: CacheNative::new() })
    }

    /// Returns the addresses of a sample's frames, innermost first. Those of callers are inside of the call, not behind it.
    pub(super) fn walk(&mut self, sample: &Sample<'_>) -> Vec<u64> {
        let registers = sample.registers;
        let mut read = |address: u64| {
            let at = usize::try_from(address.wrapping_sub(registers.stack)).map_err(drop)?;
            let bytes = sample.stack.get(at..).and_then(<[u8]>::first_chunk).ok_or(())?;
            Ok(u64::from_ne_bytes(*bytes))
        };
        #[cfg(target_arch = "x86_64")]
        let start = UnwindRegsNative::new(registers.instruction, registers.stack, registers.frame);
        #[cfg(target_arch = "aarch64")]
        let start = UnwindRegsNative::new(registers.link, registers.stack, registers.frame);
        let mut frames = self.unwinder.iter_frames(registers.instruction, start, &mut self.cache, &mut read);
        let mut addresses = Vec::with_capacity(32);
        // An error is the end of what could be copied, or code that nobody has described.
        while let Ok(Some(frame)) = frames.next()
            && addresses.len() < FRAMES_MAX
        {
            addresses.push(frame.address_for_lookup());
        }
        addresses
    }

    /// Returns the number of the file that `address` is in.
    pub(super) fn find(&self, address: u64) -> Option<usize> {
        self.all.iter().position(|mapped| mapped.range.contains(&address))
    }

    /// Returns the files, in the order of their numbers.
    pub(super) fn all(&self) -> &[Mapped] {
        &self.all
    }
}

/// Looks up names. Holds what it has read of the files until it is dropped.
pub(super) struct Symbols<'a> {
    modules: &'a Modules,
    loaders: HashMap<usize, Option<Loader>>,
}

impl<'a> Symbols<'a> {
    pub(super) fn new(modules: &'a Modules) -> Self {
        Self { modules, loaders: HashMap::new() }
    }

    /// Returns what is at `address`: the function, and before it what was put into it by the compiler, innermost first.
    /// There is always one.
    pub(super) fn places(&mut self, address: u64) -> Vec<Place> {
        let Some(number) = self.modules.find(address) else { return vec![Place::unknown(address, None)] };
        let mapped = &self.modules.all[number];
        let loader = self
            .loaders
            .entry(number)
            .or_insert_with(|| mapped.path.as_ref().and_then(|path| Loader::new(path).ok()));
        let address = address.wrapping_sub(mapped.bias);
        let places = loader.as_ref().map(|loader| look_up(loader, address));
        places.filter(|places| !places.is_empty()).unwrap_or_else(|| {
            vec![Place::offered(mapped, address).unwrap_or_else(|| Place::unknown(address, Some(mapped)))]
        })
    }
}

fn look_up(loader: &Loader, address: u64) -> Vec<Place> {
    let symbol = loader.find_symbol(address);
    let mut places = Vec::new();
    if let Ok(mut frames) = loader.find_frames(address) {
        while let Ok(Some(frame)) = frames.next() {
            let symbol =
                frame.function.as_ref().and_then(|function| function.raw_name().ok().map(String::from));
            let location = frame.location;
            let file = location.as_ref().and_then(|location| location.file).unwrap_or_default().to_owned();
            places.push(Place {
                function: symbol
                    .as_deref()
                    .map(|symbol| with_module(demangled(symbol), &file))
                    .unwrap_or_default(),
                symbol: symbol.unwrap_or_default(),
                file,
                line: location.and_then(|location| location.line).unwrap_or_default().into(),
            });
        }
    }
    // What is not inlined is in the table of symbols, with its whole path.
    if let Some(symbol) = symbol {
        if places.is_empty() {
            places.push(Place::default());
        }
        let outermost = places.last_mut().expect("there is one");
        (outermost.function, outermost.symbol) = (demangled(symbol), symbol.to_owned());
    }
    places.retain(|place| !place.function.is_empty());
    places
}

/// A name as people write it, without the compiler's hashes.
fn demangled(symbol: &str) -> String {
    format!("{:#}", rustc_demangle::demangle(symbol))
}

/// Gives the name of an inlined function, which debug information has without a path and with all its types, the path that
/// its file suggests, and no types.
fn with_module(name: String, file: &str) -> String {
    if name.starts_with('<') || name.split('<').next().is_some_and(|name| name.contains("::")) {
        return name;
    }
    let short = name.split('<').next().unwrap_or_default();
    match module_of(file) {
        Some(module) => format!("{module}::{short}"),
        None => short.to_owned(),
    }
}

/// Tells of `…/tokio-1.2.3/src/runtime/mod.rs` that it is `tokio::runtime`.
fn module_of(file: &str) -> Option<String> {
    let (package, module) = file.rsplit_once("/src/")?;
    let mut folders = package.rsplit('/');
    let folder = folders.next()?;
    let is_version = |text: &str| text.starts_with(|first: char| first.is_ascii_digit());
    let name = match folder.rsplit_once('-') {
        Some((name, version)) if is_version(version) => name,
        _ => folder,
    };
    // Those of this workspace are named after it.
    let is_ours = folders.next() == Some("crates") && name != "forebay";
    let mut path = vec![format!("{}{}", if is_ours { "forebay_" } else { "" }, name.replace('-', "_"))];
    let parts = module.strip_suffix(".rs")?.split('/').map(str::to_owned);
    path.extend(parts.filter(|part| !matches!(part.as_str(), "lib" | "main" | "mod")));
    Some(path.join("::"))
}

impl Place {
    /// What a library offers at an address of its file.
    fn offered(mapped: &Mapped, address: u64) -> Option<Self> {
        let after = mapped.offers.partition_point(|offer| offer.range.start <= address);
        let offer = mapped.offers[..after].last().filter(|offer| offer.range.contains(&address))?;
        let (function, symbol) = (demangled(&offer.name), offer.name.clone());
        Some(Self { function, symbol, file: String::new(), line: 0 })
    }

    /// What nobody has a name for: `address` is one of the file, if it is of a file.
    fn unknown(address: u64, mapped: Option<&Mapped>) -> Self {
        let name = match mapped {
            Some(mapped) if mapped.path.is_none() => mapped.name.clone(),
            Some(mapped) => {
                let file = mapped.name.rsplit('/').next().unwrap_or_default();
                format!("{file}+{address:#x}")
            }
            None => format!("{address:#x}"),
        };
        Self { function: name.clone(), symbol: name, file: String::new(), line: 0 }
    }
}

/// A line of `/proc/self/maps`.
struct Line<'a> {
    range: Range<u64>,
    is_code: bool,
    offset: u64,
    name: &'a str,
}

impl<'a> Line<'a> {
    fn read(line: &'a str) -> Option<Self> {
        // The name is behind five fields, may have spaces, and may be missing.
        let mut fields = line.splitn(6, ' ');
        let (start, end) = fields.next()?.split_once('-')?;
        let hex = |text| u64::from_str_radix(text, 16).ok();
        let range = hex(start)?..hex(end)?;
        let is_code = fields.next()?.contains('x');
        let offset = hex(fields.next()?)?;
        Some(Self { range, is_code, offset, name: fields.nth(2)?.trim_start() })
    }
}

/// What is kept of a file.
struct FileRead {
    bias: u64,
    sections: ExplicitModuleSectionInfo<Vec<u8>>,
    offers: Vec<Offer>,
}

/// Reads the file at `path`, or the vDSO in memory.
fn read_file(line: &Line<'_>, path: Option<&PathBuf>) -> io::Result<FileRead> {
    match path {
        Some(path) => {
            let cache = ReadCache::new(File::open(path)?);
            read_object(line, &object::File::parse(&cache).map_err(io::Error::other)?)
        }
        None if line.range.end - line.range.start > VDSO_MAX => Err(io::ErrorKind::InvalidData.into()),
        None => {
            let mut bytes = vec![0; (line.range.end - line.range.start) as usize];
            File::open("/proc/self/mem")?.read_exact_at(&mut bytes, line.range.start)?;
            read_object(line, &object::File::parse(&*bytes).map_err(io::Error::other)?)
        }
    }
}

fn read_object<'data>(line: &Line<'_>, file: &impl Object<'data>) -> io::Result<FileRead> {
    // What is mapped begins where a page of the file begins.
    let is_mapped = |(offset, size): (u64, u64)| (offset & !0xfff..offset + size).contains(&line.offset);
    let mut segments = file.segments();
    let segment =
        segments.find(|segment| segment.permissions().executable() && is_mapped(segment.file_range()));
    let segment = segment.ok_or(io::ErrorKind::InvalidData)?;
    let address = segment.address().wrapping_sub(segment.file_range().0).wrapping_add(line.offset);
    let range = |name: &str| {
        let section = file.section_by_name(name)?;
        Some(section.address()..section.address() + section.size())
    };
    let data =
        |name: &str| file.section_by_name(name)?.uncompressed_data().ok().map(|data| data.into_owned());
    let sections = ExplicitModuleSectionInfo {
        text_svma: range(".text"),
        got_svma: range(".got"),
        eh_frame_svma: range(".eh_frame"),
        eh_frame: data(".eh_frame"),
        eh_frame_hdr_svma: range(".eh_frame_hdr"),
        eh_frame_hdr: data(".eh_frame_hdr"),
        ..Default::default()
    };
    let functions =
        file.dynamic_symbols().filter(|symbol| symbol.is_definition() && symbol.kind() == SymbolKind::Text);
    let mut offers: Vec<_> = functions
        .filter_map(|symbol| {
            let range = symbol.address()..symbol.address() + symbol.size();
            Some(Offer { range, name: symbol.name().ok()?.to_owned() })
        })
        .collect();
    offers.sort_by_key(|offer| offer.range.start);
    Ok(FileRead { bias: line.range.start.wrapping_sub(address), sections, offers })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_maps_are_read_with_names_that_have_spaces() {
        let line =
            Line::read("7f00a000-7f00c000 r-xp 00002000 fe:00 1234          /usr/lib/a b.so (deleted)")
                .unwrap();
        assert_eq!((line.range, line.is_code, line.offset), (0x7f00_a000..0x7f00_c000, true, 0x2000));
        assert_eq!(line.name, "/usr/lib/a b.so (deleted)");
        let line = Line::read("7f00a000-7f00c000 rw-p 00000000 00:00 0 ").unwrap();
        assert_eq!((line.is_code, line.name), (false, ""));
        assert!(Line::read("nothing").is_none());
    }

    #[test]
    fn this_function_is_found_by_its_address_with_its_file() {
        let modules = Modules::of_this_process().unwrap();
        let address = lines_of_maps_are_read_with_names_that_have_spaces as fn() as usize as u64;
        let mut symbols = Symbols::new(&modules);
        let place = symbols.places(address).pop().unwrap();
        assert!(place.function.ends_with("lines_of_maps_are_read_with_names_that_have_spaces"), "{place:?}");
        assert!(place.file.ends_with("modules.rs") && place.line > 0, "{place:?}");
        let nowhere = symbols.places(8);
        assert_eq!(nowhere[0].function, "0x8");
    }

    #[test]
    fn functions_of_a_library_without_debug_information_have_the_names_that_it_offers() {
        let modules = Modules::of_this_process().unwrap();
        let libc = modules.all().iter().position(|mapped| mapped.name.contains("libc.so")).expect("glibc");
        let mapped = &modules.all()[libc];
        let offer = mapped.offers.iter().find(|offer| offer.name == "getpid").expect("it is old");
        let inside = offer.range.start + mapped.bias + 1;
        assert_eq!(modules.find(inside), Some(libc));
        let places = Symbols::new(&modules).places(inside);
        assert!(places.last().unwrap().function.ends_with("getpid"), "{places:?}");
    }

    #[test]
    fn inlined_functions_get_the_path_of_their_file_and_lose_their_types() {
        for (name, file, expected) in [
            ("poll<a::B, c::D>", "/r/index.crates.io-1/tokio-1.54.1/src/task/mod.rs", "tokio::task::poll"),
            (
                "{closure#0}<A>",
                "/rustc/abc/library/core/src/ops/function.rs",
                "core::ops::function::{closure#0}",
            ),
            ("run", "crates/dns-core/src/lib.rs", "forebay_dns_core::run"),
            ("run", "/home/x/crates/forebay/src/sys/udp.rs", "forebay::sys::udp::run"),
            ("tick", "/r/futures-util-0.3.31/src/stream/mod.rs", "futures_util::stream::tick"),
            ("a::b<c>", "/r/x-1/src/y.rs", "a::b<c>"),
            ("<A as B>::c", "/r/x-1/src/y.rs", "<A as B>::c"),
            ("memcpy<u8>", "../string.c", "memcpy"),
        ] {
            assert_eq!(with_module(name.to_owned(), file), expected, "{name} in {file}");
        }
    }
}
