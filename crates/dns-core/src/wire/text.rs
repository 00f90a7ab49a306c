//! Names as people write them (RFC 1035 §5.1, RFC 4343 §2.1), and back.

use std::fmt;

use super::NAME_LEN_MAX;

/// Reads a name: `example.org`, with or without the final dot; `.` is the root. `\.` is a dot within a label, `\065` an
/// octet by its decimal value. The result is in wire form and in lower case.
///
/// # Errors
///
/// [`NameTextError`] says what is wrong with it.
pub fn parse_name(text: &str) -> Result<Vec<u8>, NameTextError> {
    let mut wire = Vec::with_capacity(text.len() + 2);
    push_name(&mut wire, text.as_bytes())?;
    Ok(wire)
}

/// Appends the name that `text` writes; see [`parse_name`]. What `out` has gained after an error is of no meaning.
pub(crate) fn push_name(out: &mut Vec<u8>, text: &[u8]) -> Result<(), NameTextError> {
    let start = out.len();
    if text == b"." {
        out.push(0);
        return Ok(());
    }
    if text.is_empty() {
        return Err(NameTextError::Empty);
    }
    let mut at = 0;
    let mut label = out.len();
    out.push(0);
    while let Some(&byte) = text.get(at) {
        at += 1;
        let octet = match byte {
            b'.' => {
                close_label(out, label)?;
                if at == text.len() {
                    out.push(0);
                    return in_bounds(out.len() - start);
                }
                label = out.len();
                out.push(0);
                continue;
            }
            b'\\' => {
                let (octet, len) = escaped(text.get(at..).unwrap_or_default())?;
                at += len;
                octet
            }
            b'!'..=b'~' => byte,
            _ => return Err(NameTextError::Character(byte)),
        };
        out.push(octet.to_ascii_lowercase());
    }
    close_label(out, label)?;
    out.push(0);
    in_bounds(out.len() - start)
}

fn close_label(out: &mut [u8], label: usize) -> Result<(), NameTextError> {
    match out.len() - label - 1 {
        0 => Err(NameTextError::EmptyLabel),
        len @ 1..=63 => {
            out[label] = len as u8;
            Ok(())
        }
        _ => Err(NameTextError::LongLabel),
    }
}

const fn in_bounds(len: usize) -> Result<(), NameTextError> {
    if len > NAME_LEN_MAX { Err(NameTextError::Long) } else { Ok(()) }
}

/// What stands behind a backslash: the octet, and how much of the text it takes.
pub(crate) fn escaped(rest: &[u8]) -> Result<(u8, usize), NameTextError> {
    match rest {
        [a @ b'0'..=b'9', b @ b'0'..=b'9', c @ b'0'..=b'9', ..] => {
            let value = [a, b, c].iter().fold(0u16, |sum, digit| sum * 10 + u16::from(**digit - b'0'));
            u8::try_from(value).map(|octet| (octet, 3)).map_err(|_| NameTextError::Escape)
        }
        [b'0'..=b'9', ..] | [] => Err(NameTextError::Escape),
        [octet, ..] => Ok((*octet, 1)),
    }
}

/// What is wrong with a name as it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameTextError {
    /// There is nothing.
    Empty,
    /// Two dots in a row, or one at the start.
    EmptyLabel,
    /// A label of more than 63 octets (RFC 1035 §2.3.4).
    LongLabel,
    /// More than 255 octets (RFC 1035 §2.3.4).
    Long,
    /// A character that a name cannot have: a space, a control character, or one beyond ASCII.
    Character(u8),
    /// A backslash without a character or three digits up to 255 behind it.
    Escape,
}

impl fmt::Display for NameTextError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("it is empty; write `.` for the root"),
            Self::EmptyLabel => f.write_str("it has an empty label: a dot too many"),
            Self::LongLabel => f.write_str("it has a label of more than 63 octets"),
            Self::Long => f.write_str("it has more than 255 octets"),
            Self::Character(byte) if byte.is_ascii() => {
                write!(f, "a name cannot have the character `{}`", byte.escape_ascii())
            }
            Self::Character(_) => {
                f.write_str("it has a character beyond ASCII: write its labels in punycode, as xn--…")
            }
            Self::Escape => f.write_str("`\\` must be followed by a character or by three digits up to 255"),
        }
    }
}

impl std::error::Error for NameTextError {}

/// An uncompressed name in wire form, shown as people write it: without the final dot, and `.` for the root.
#[derive(Clone, Copy, Debug)]
pub struct NameText<'a>(pub &'a [u8]);

impl fmt::Display for NameText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0;
        let mut is_first = true;
        while let Some((&len, after)) = rest.split_first() {
            let (label, after) = after.split_at_checked(usize::from(len)).unwrap_or((after, &[]));
            rest = after;
            if len == 0 {
                break;
            }
            if !is_first {
                f.write_str(".")?;
            }
            is_first = false;
            for &byte in label {
                match byte {
                    b'.' | b'\\' => write!(f, "\\{}", char::from(byte))?,
                    b'!'..=b'~' => write!(f, "{}", char::from(byte))?,
                    _ => write!(f, "\\{byte:03}")?,
                }
            }
        }
        if is_first { f.write_str(".") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::name::plain_name_end;

    #[test]
    fn names_are_read_as_they_are_written() {
        assert_eq!(parse_name("."), Ok(vec![0]));
        assert_eq!(parse_name("Example.ORG"), Ok(b"\x07example\x03org\0".to_vec()));
        assert_eq!(parse_name("example.org."), Ok(b"\x07example\x03org\0".to_vec()));
        assert_eq!(parse_name("a\\.b.c"), Ok(b"\x03a.b\x01c\0".to_vec()));
        assert_eq!(parse_name("\\065\\000"), Ok(b"\x02a\0\0".to_vec()));
    }

    #[test]
    fn what_is_no_name_is_refused_with_its_reason() {
        use NameTextError::*;
        assert_eq!(parse_name(""), Err(Empty));
        assert_eq!(parse_name(".a"), Err(EmptyLabel));
        assert_eq!(parse_name("a..b"), Err(EmptyLabel));
        assert_eq!(parse_name("a b"), Err(Character(b' ')));
        assert_eq!(parse_name("bücher"), Err(Character(0xc3)));
        assert_eq!(parse_name("a\\"), Err(Escape));
        assert_eq!(parse_name("a\\256"), Err(Escape));
        assert_eq!(parse_name("a\\12"), Err(Escape));
        assert_eq!(parse_name(&"a".repeat(64)), Err(LongLabel));
        assert_eq!(parse_name(&["a".repeat(63).as_str(); 4].join(".")), Err(Long));
        let longest = [&"a".repeat(63)[..], &"a".repeat(63), &"a".repeat(63), &"a".repeat(61)].join(".");
        assert_eq!(parse_name(&longest).map(|wire| wire.len()), Ok(255));
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read_back(labels in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..=63), 0..6)) {
            let mut wire = Vec::new();
            for label in &labels {
                wire.push(label.len() as u8);
                wire.extend(label.to_ascii_lowercase());
            }
            wire.push(0);
            prop_assume!(wire.len() <= NAME_LEN_MAX);
            prop_assert_eq!(parse_name(&NameText(&wire).to_string()), Ok(wire));
        }

        #[test]
        fn any_text_is_a_good_name_or_an_error(text in "\\PC{0,80}") {
            if let Ok(wire) = parse_name(&text) {
                prop_assert_eq!(plain_name_end(&wire, 0), Some(wire.len()));
            }
        }

        #[test]
        fn any_bytes_can_be_shown(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = NameText(&bytes).to_string();
        }
    }
}
