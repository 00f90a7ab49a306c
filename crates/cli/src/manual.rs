//! Manual pages and completions for shells, made from the arguments themselves.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::CommandFactory;

use crate::args::Args;
use crate::failure::{Failure, say};

/// The options of `completions`.
#[derive(Debug, clap::Args)]
pub struct CompletionsArgs {
    /// For which shell.
    pub shell: clap_complete::Shell,
}

/// The options of `man`.
#[derive(Debug, clap::Args)]
pub struct ManArgs {
    /// Folder that gets a page for each command, forebay.1 and forebay-dns.1 and so on; it is made if it is not there
    /// [default: the page of forebay alone, on the standard output].
    #[arg(long, value_name = "FOLDER")]
    pub output: Option<PathBuf>,
}

/// Writes what a shell reads to complete our arguments.
///
/// # Errors
///
/// When the standard output cannot be written.
pub(crate) fn completions(args: &CompletionsArgs) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Args::command(), "forebay", &mut script);
    put(&script)
}

/// Writes manual pages.
///
/// # Errors
///
/// When the folder, a page in it or the standard output cannot be written.
pub(crate) fn man(args: &ManArgs) -> Result<(), Failure> {
    let mut command = Args::command();
    command.build();
    let Some(folder) = &args.output else { return put(&page(&command)?) };
    let pages = pages(&command, folder)?;
    say(&format!("{}: {pages} pages", folder.display()));
    Ok(())
}

fn put(text: &[u8]) -> Result<(), Failure> {
    match io::stdout().write_all(text) {
        // Whoever reads has seen enough.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::failed(format!("cannot write to the standard output: {error}")))
        }
        _ => Ok(()),
    }
}

fn page(command: &clap::Command) -> Result<Vec<u8>, Failure> {
    let mut text = Vec::new();
    clap_mangen::Man::new(command.clone())
        .render(&mut text)
        .map_err(|error| Failure::failed(format!("a manual page cannot be made: {error}")))?;
    Ok(text)
}

/// Writes the page of a command and of those below it. Returns how many.
fn pages(command: &clap::Command, folder: &Path) -> Result<usize, Failure> {
    let cannot = |path: &Path, error| Failure::failed(format!("cannot write {}: {error}", path.display()));
    fs::create_dir_all(folder).map_err(|error| cannot(folder, error))?;
    let mut written = 0;
    let mut waiting = vec![command.clone()];
    while let Some(command) = waiting.pop() {
        let name = command.get_display_name().unwrap_or(command.get_name()).to_owned();
        let path = folder.join(format!("{name}.1"));
        fs::write(&path, page(&command)?).map_err(|error| cannot(&path, error))?;
        written += 1;
        waiting.extend(
            command.get_subcommands().filter(|one| one.get_name() != "help" && !one.is_hide_set()).cloned(),
        );
    }
    Ok(written)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page_that_names_its_options() {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Args::command();
        command.build();
        let written = pages(&command, folder.path()).unwrap();
        assert_eq!(written, fs::read_dir(folder.path()).unwrap().count());
        for (name, option) in [
            ("forebay", "upstream"),
            ("forebay-dns", "strategy"),
            ("forebay-bench-dns", "in\\-flight"),
            ("forebay-grpc-serve", "profile"),
        ] {
            let text = fs::read_to_string(folder.path().join(format!("{name}.1"))).unwrap();
            assert!(text.contains(".TH") && text.contains(option), "{name}");
        }
    }

    #[test]
    fn every_shell_gets_a_script_that_knows_the_commands() {
        use clap::ValueEnum;
        for shell in clap_complete::Shell::value_variants() {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Args::command(), "forebay", &mut script);
            let script = String::from_utf8(script).unwrap();
            assert!(script.contains("apiserver-proxy") && script.contains("upstream"), "{shell}");
        }
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_named() {
        let error = man(&ManArgs { output: Some("/dev/null/pages".into()) }).unwrap_err();
        assert!(error.to_string().contains("/dev/null/pages"), "{error}");
    }
}
