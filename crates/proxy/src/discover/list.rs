//! Lists of backends in files: `{"endpoints": ["192.0.2.1:6443"]}`, or one a line.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Found;
use crate::settings::BackendAddress;

/// More than this is no list of backends: ten thousand of them take a quarter.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The format of k8s-apiserver-proxy. Other keys are of no concern.
#[derive(Deserialize, Serialize)]
struct Json {
    endpoints: Vec<String>,
}

/// Reads a file. What is wrong names the file, the place in it, and what to do.
pub(super) fn read(path: &Path) -> Result<Vec<Found>, String> {
    let wrong = |problem: String| format!("{}: {problem}", path.display());
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text));
    match read {
        Ok(length) if length as u64 > FILE_BYTES_MAX => {
            Err(wrong(format!("is longer than {FILE_BYTES_MAX} bytes, which no list of endpoints is")))
        }
        Ok(_) => parse(&text).map_err(wrong),
        Err(error) => Err(wrong(match error.kind() {
            io::ErrorKind::NotFound => {
                "there is no such file: write {\"endpoints\": [\"192.0.2.1:6443\"]} to it, with your addresses"
                    .to_owned()
            }
            io::ErrorKind::PermissionDenied => {
                "this user may not read it: change its owner or its mode".to_owned()
            }
            io::ErrorKind::InvalidData => "is no text: write it in UTF-8".to_owned(),
            _ => format!("cannot be read: {error}"),
        })),
    }
}

/// Reads the text of a file.
pub(super) fn parse(text: &str) -> Result<Vec<Found>, String> {
    if text.trim_start().starts_with(['{', '[', '"']) {
        let json: Json = serde_json::from_str(text).map_err(|error| {
            // serde_json says the line and the column.
            format!("is not as it must be: {error}; write {{\"endpoints\": [\"192.0.2.1:6443\"]}}")
        })?;
        let read = |(at, text): (usize, &String)| {
            backend(text)
                .map_err(|problem| format!("endpoint {} of {}: {problem}", at + 1, json.endpoints.len()))
        };
        return json.endpoints.iter().enumerate().map(read).collect();
    }
    let lines = text
        .lines()
        .enumerate()
        .map(|(at, line)| (at + 1, line.split('#').next().unwrap_or_default().trim()));
    lines
        .filter(|(_, line)| !line.is_empty())
        .map(|(number, line)| backend(line).map_err(|problem| format!("line {number}: {problem}")))
        .collect()
}

fn backend(text: &str) -> Result<Found, String> {
    text.parse::<BackendAddress>().map(Found::plain)
}

/// Writes a list, sorted, readable by its owner only. Whoever reads meanwhile sees the old one or the new one, whole, and
/// so does whoever comes after a loss of power.
pub(super) fn write(path: &Path, list: &[Found]) -> io::Result<()> {
    let mut endpoints: Vec<String> = list.iter().map(|found| found.backend.to_string()).collect();
    endpoints.sort_unstable();
    let text = serde_json::to_vec(&Json { endpoints })?;
    let beside = beside(path)?;
    let written = write_beside(&beside, &text).and_then(|()| fs::rename(&beside, path));
    if written.is_err() {
        // It may not even be there.
        let _ = fs::remove_file(&beside);
        return written;
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

fn write_beside(beside: &Path, text: &[u8]) -> io::Result<()> {
    // What a process left that was killed at this point.
    match fs::remove_file(beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(beside)?;
    file.write_all(text)?;
    file.sync_all()
}

/// The name under which it is written first.
fn beside(path: &Path) -> io::Result<PathBuf> {
    let name = path.file_name().ok_or_else(|| io::Error::other("is not the name of a file"))?;
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    hidden.push(format!(".{}", std::process::id()));
    Ok(path.with_file_name(hidden))
}
