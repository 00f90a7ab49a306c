//! Everything that is wrong in a file, with its line, its key, and what may stand there instead.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use forebay_dns::SettingsError;
use toml::Value;
use toml::de::{DeTable, DeValue};

use super::File;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The line it stands in, from 1; `None` if it stands nowhere, as with a default that does not fit.
    pub line: Option<usize>,
    /// The key, dotted; empty if it is about the file.
    pub key: String,
    /// What is wrong, and what may be instead.
    pub text: String,
}

/// All that is wrong in one file. Shown as one paragraph for each problem: `file:line: key: what`, and the line itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems {
    file: String,
    source: String,
    list: Vec<Problem>,
}

impl Problems {
    /// Returns the problems in the order of their lines.
    pub fn list(&self) -> &[Problem] {
        &self.list
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.list.iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            f.write_str(&self.file)?;
            if let Some(line) = problem.line {
                write!(f, ":{line}")?;
            }
            if !problem.key.is_empty() {
                write!(f, ": {}", problem.key)?;
            }
            write!(f, ": {}", problem.text)?;
            let source = problem.line.and_then(|line| self.source.lines().nth(line - 1));
            if let (Some(line), Some(source)) = (problem.line, source) {
                write!(f, "\n{line:>5} | {}", shown(source))?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// A line of the source as a terminal can take it: no control characters, not without end.
fn shown(line: &str) -> String {
    line.trim_end().chars().take(LINE_MAX).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Characters of a source line that are shown.
const LINE_MAX: usize = 160;

/// Where every key of a file stands.
pub(super) struct Index<'a> {
    name: &'a str,
    text: &'a str,
    table: DeTable<'a>,
    keys: BTreeMap<String, Range<usize>>,
}

impl<'a> Index<'a> {
    /// Finds the keys of `text`.
    ///
    /// # Errors
    ///
    /// Everything that is no TOML.
    pub(super) fn new(name: &'a str, text: &'a str) -> Result<Self, Problems> {
        let (document, errors) = DeTable::parse_recoverable(text);
        let mut index = Self { name, text, table: document.into_inner(), keys: BTreeMap::new() };
        if !errors.is_empty() {
            let list = errors.iter().map(|error| index.of_error(error)).collect();
            return Err(index.problems(list));
        }
        collect(&index.table, "", &mut index.keys);
        Ok(index)
    }

    /// Makes the problems of this file of a list.
    pub(super) fn problems(&self, mut list: Vec<Problem>) -> Problems {
        list.sort_by_key(|problem| problem.line);
        list.dedup();
        Problems { file: self.name.to_owned(), source: self.text.to_owned(), list }
    }

    /// Makes the problems of this file of one error of the parser.
    pub(super) fn problem(&self, error: &toml::de::Error) -> Problems {
        self.problems(vec![self.of_error(error)])
    }

    /// Finds the line of a value that cannot be: that of its key, or of the next table around it.
    pub(super) fn locate(&self, table: &str, error: &SettingsError) -> Problem {
        let key = if table.is_empty() || error.key == table {
            error.key.clone()
        } else {
            error.key.split(", ").map(|key| format!("{table}.{key}")).collect::<Vec<_>>().join(", ")
        };
        let mut line = None;
        for one in key.split(", ") {
            let mut path = one;
            line = line.or_else(|| self.line_of(one));
            while let (None, Some((parent, _))) = (line, path.rsplit_once('.')) {
                line = self.line_of(parent);
                path = parent;
            }
        }
        Problem { line, key, text: error.problem.clone() }
    }

    fn line_of(&self, key: &str) -> Option<usize> {
        self.keys.get(key).map(|span| self.line_at(span.start))
    }

    fn line_at(&self, offset: usize) -> usize {
        let before = &self.text.as_bytes()[..offset.min(self.text.len())];
        before.iter().filter(|byte| **byte == b'\n').count() + 1
    }

    fn of_error(&self, error: &toml::de::Error) -> Problem {
        let line = error.span().map(|span| self.line_at(span.start));
        let text: Vec<&str> = error.message().lines().collect();
        Problem { line, key: String::new(), text: text.join("; ") }
    }
}

fn collect(table: &DeTable<'_>, path: &str, keys: &mut BTreeMap<String, Range<usize>>) {
    for (key, value) in table {
        let path = joined(path, key.get_ref());
        keys.insert(path.clone(), key.span());
        match value.get_ref() {
            DeValue::Table(table) => collect(table, &path, keys),
            DeValue::Array(array) => {
                for (n, element) in array.iter().enumerate() {
                    if let DeValue::Table(table) = element.get_ref() {
                        let path = format!("{path}[{n}]");
                        keys.insert(path.clone(), element.span());
                        collect(table, &path, keys);
                    }
                }
            }
            _ => {}
        }
    }
}

fn joined(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// Checks that every key is known, and every value of its kind.
///
/// # Errors
///
/// All that are not.
pub(super) fn check_keys(index: &Index<'_>) -> Result<(), Problems> {
    let Ok(Value::Table(model)) = Value::try_from(File::model()) else {
        unreachable!("the model of a file is a table");
    };
    let mut list = Vec::new();
    let checker = Checker { index, model: &model };
    checker.check(&index.table, &model, "", &mut list);
    if list.is_empty() { Ok(()) } else { Err(index.problems(list)) }
}

struct Checker<'a> {
    index: &'a Index<'a>,
    model: &'a toml::Table,
}

impl Checker<'_> {
    fn check(&self, table: &DeTable<'_>, model: &toml::Table, path: &str, list: &mut Vec<Problem>) {
        for (key, value) in table {
            let name: &str = key.get_ref();
            let full = joined(path, name);
            let text = match (model.get(name), value.get_ref()) {
                (None, _) => Some(self.unknown(name, path, model)),
                (Some(Value::Table(model)), DeValue::Table(table)) => {
                    self.check(table, model, &full, list);
                    None
                }
                (Some(Value::Array(models)), value) if models.first().is_some_and(Value::is_table) => {
                    self.check_tables(value, &models[0], &full, list)
                }
                (Some(Value::Table(_)), other) => {
                    Some(format!("is {}; it must be a table, like [{full}]", kind(other)))
                }
                (Some(_), DeValue::Table(_)) => Some("is a table; it must be a value".to_owned()),
                (Some(_), other) => self.wrong_value(name, path, other, value.span()),
            };
            if let Some(text) = text {
                list.push(Problem { line: Some(self.index.line_at(key.span().start)), key: full, text });
            }
        }
    }

    /// Checks an array of tables. Returns what is wrong if it is none.
    fn check_tables(
        &self,
        value: &DeValue<'_>,
        model: &Value,
        path: &str,
        list: &mut Vec<Problem>,
    ) -> Option<String> {
        let (DeValue::Array(array), Value::Table(model)) = (value, model) else {
            return Some(format!("is {}; it must be tables, each under [[{path}]]", kind(value)));
        };
        for (n, element) in array.iter().enumerate() {
            match element.get_ref() {
                DeValue::Table(table) => self.check(table, model, &format!("{path}[{n}]"), list),
                other => {
                    return Some(format!("has {}; it must have tables, each under [[{path}]]", kind(other)));
                }
            }
        }
        None
    }

    fn unknown(&self, name: &str, path: &str, model: &toml::Table) -> String {
        let mut elsewhere = Vec::new();
        find(self.model, name, "", &mut elsewhere);
        if !elsewhere.is_empty() {
            return format!("unknown key here; it belongs to {}", elsewhere.join(" or "));
        }
        if let Some(near) = nearest(name, model.keys().map(String::as_str)) {
            return format!("unknown key; did you mean `{near}`?");
        }
        let mut everywhere = Vec::new();
        collect_keys(self.model, &mut everywhere);
        if let Some(near) = nearest(name, everywhere.into_iter()) {
            let mut tables = Vec::new();
            find(self.model, near, "", &mut tables);
            if !tables.is_empty() {
                return format!("unknown key; did you mean `{near}` of {}?", tables.join(" or "));
            }
        }
        let known: Vec<&str> = model.keys().map(String::as_str).collect();
        let place = if path.is_empty() { "the file".to_owned() } else { format!("[{path}]") };
        format!("unknown key; {place} may have {}", known.join(", "))
    }

    /// Reads the value alone, so that its error is about nothing else.
    fn wrong_value(&self, name: &str, path: &str, value: &DeValue<'_>, span: Range<usize>) -> Option<String> {
        let written = self.index.text.get(span).unwrap_or_default();
        let problem = read_alone(path, name, written)?;
        let choice = read_alone(path, name, "\"\"").and_then(|problem| choices(&problem).map(|(_, all)| all));
        Some(match (choices(&problem), choice) {
            (Some((written, allowed)), _) => {
                let text = format!("`{written}` is not one of {}", allowed.join(", "));
                match nearest(&written, allowed.iter().map(String::as_str)) {
                    Some(near) => format!("{text}; did you mean `{near}`?"),
                    None => text,
                }
            }
            (None, Some(allowed)) => format!("is {}; it must be one of {}", kind(value), allowed.join(", ")),
            (None, None) => explain(&problem, value),
        })
    }
}

/// Returns what is wrong with `name = written` in the table `path` of an otherwise empty file.
fn read_alone(path: &str, name: &str, written: &str) -> Option<String> {
    let head = match path.split_once('[') {
        // A table of an array, or one within it.
        Some((path, rest)) => match rest.split_once("].") {
            Some((_, inner)) => format!("[[{path}]]\n[{path}.{inner}]"),
            None => format!("[[{path}]]"),
        },
        None => format!("[{path}]"),
    };
    let text = format!("{head}\n{name} = {written}");
    toml::from_str::<File>(&text).err().map(|error| error.message().to_owned())
}

/// Takes the word written and the words allowed out of a message about them.
fn choices(message: &str) -> Option<(String, Vec<String>)> {
    let rest = message.strip_prefix("unknown variant `")?;
    let (written, rest) = rest.split_once("`, expected ")?;
    Some((written.to_owned(), rest.split('`').skip(1).step_by(2).map(str::to_owned).collect()))
}

/// Finds the tables that have a key of this name.
fn find(model: &toml::Table, name: &str, path: &str, found: &mut Vec<String>) {
    for (key, value) in model {
        if key == name && !path.is_empty() {
            found.push(format!("[{path}]"));
        }
        match value {
            Value::Table(table) => find(table, name, &joined(path, key), found),
            Value::Array(array) => {
                if let Some(Value::Table(table)) = array.first() {
                    find(table, name, &format!("[{}]", joined(path, key)), found);
                }
            }
            _ => {}
        }
    }
}

/// Collects the keys of all tables.
fn collect_keys<'a>(model: &'a toml::Table, keys: &mut Vec<&'a str>) {
    for (key, value) in model {
        keys.push(key);
        if let Value::Table(table) = value {
            collect_keys(table, keys);
        }
    }
}

/// Says in words of the file, not of the program, why a value is wrong.
fn explain(problem: &str, value: &DeValue<'_>) -> String {
    let Some((_, expected)) = problem.rsplit_once("expected ") else { return problem.to_owned() };
    let max = match expected {
        "u16" => Some(u64::from(u16::MAX)),
        "u32" => Some(u64::from(u32::MAX)),
        "u64" | "usize" => Some(i64::MAX.unsigned_abs()),
        _ => None,
    };
    match (max, value) {
        (Some(max), DeValue::Integer(number)) => {
            format!("{} is out of range; it must be 0 to {max}", number.as_str())
        }
        (Some(_), DeValue::String(text)) if text.parse::<u64>().is_ok() => {
            format!("is a text; write the number without quotes: {text}")
        }
        (Some(_), other) => format!("is {}; it must be a whole number", kind(other)),
        (None, DeValue::String(text)) if expected == "a sequence" => {
            format!("is a text; it must be an array, like [{:?}]", text.as_ref())
        }
        (None, DeValue::Array(_)) => "each element must be a text in quotes".to_owned(),
        (None, other) => {
            let expected = if expected.contains("string") { "a text in quotes" } else { expected };
            format!("is {}; it must be {expected}", kind(other))
        }
    }
}

fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a text",
        DeValue::Integer(_) => "a number",
        DeValue::Float(_) => "a number with a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    }
}

/// Returns the candidate that was most likely meant, if any is near enough.
pub(crate) fn nearest<'a>(written: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .map(|candidate| (strsim::jaro_winkler(written, candidate), candidate))
        .filter(|(likeness, _)| *likeness >= LIKENESS_MIN)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, candidate)| candidate)
}

/// Words less alike than this were hardly meant: `capcity` and `capacity` have 0.96, `port` and `workers` 0.5.
const LIKENESS_MIN: f64 = 0.84;
