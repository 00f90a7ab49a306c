//! `POST /dns/flush?name=example.org&subtree=true`: forgets cached answers.

use axum::extract::{RawQuery, State};
use axum::http::header::ORIGIN;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use forebay_dns::parse_name;
use serde::Serialize;

use super::{STATS_MAX, Shared, stuck};

const HOW: &str = "POST /dns/flush?name=example.org forgets one name; with &subtree=true all below it too; the root is `.`\n";

/// What is answered.
#[derive(Debug, Serialize)]
struct Report {
    /// Entries forgotten, all workers together.
    flushed: u64,
    /// Workers that have looked through their caches.
    workers: usize,
}

/// What is to be forgotten.
#[derive(Debug, PartialEq, Eq)]
struct Order {
    /// In wire form.
    name: Vec<u8>,
    subtree: bool,
}

/// Forgets what the query says.
pub(super) async fn flush(
    State(shared): State<Shared>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    // Browsers say from which page a POST comes, and no page has any business here.
    if headers.contains_key(ORIGIN) {
        return (StatusCode::FORBIDDEN, "not for web pages\n").into_response();
    }
    let order = match Order::read(query.as_deref().unwrap_or_default()) {
        Ok(order) => order,
        Err(problem) => return (StatusCode::BAD_REQUEST, format!("{problem}\n{HOW}")).into_response(),
    };
    let Some(dns) = shared.source.dns.clone() else {
        return (StatusCode::NOT_FOUND, "no DNS server runs here\n").into_response();
    };
    let work = async move { dns.flush(&order.name, order.subtree).await };
    match tokio::time::timeout(STATS_MAX, work).await {
        Ok(done) => axum::Json(Report { flushed: done.entries, workers: done.workers }).into_response(),
        Err(_) => stuck(),
    }
}

impl Order {
    fn read(query: &str) -> Result<Self, String> {
        let (mut name, mut subtree) = (None, None);
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = decoded(value).ok_or_else(|| format!("{key}: `{value}` is not well encoded"))?;
            let is_first = match key {
                "name" => {
                    let wire = parse_name(&value).map_err(|error| format!("name: `{value}`: {error}"))?;
                    name.replace(wire).is_none()
                }
                "subtree" => {
                    let value = match value.as_str() {
                        "true" => true,
                        "false" => false,
                        _ => return Err(format!("subtree: `{value}` is neither true nor false")),
                    };
                    subtree.replace(value).is_none()
                }
                _ => return Err(format!("`{key}` is not known: use name and subtree")),
            };
            if !is_first {
                return Err(format!("{key} is given twice"));
            }
        }
        let name = name.ok_or("no name")?;
        Ok(Self { name, subtree: subtree.unwrap_or(false) })
    }
}

/// Undoes percent-encoding.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, behind)) = rest.split_first() {
        if first != b'%' {
            bytes.push(first);
            rest = behind;
            continue;
        }
        let (digits, behind) = behind.split_first_chunk::<2>()?;
        let digit = |digit: u8| char::from(digit).to_digit(16);
        bytes.push((digit(digits[0])? * 16 + digit(digits[1])?) as u8);
        rest = behind;
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_names_a_name_and_whether_all_below_it_goes_too() {
        let order = |name: &[u8], subtree| Ok(Order { name: name.to_vec(), subtree });
        assert_eq!(Order::read("name=Example.org"), order(b"\x07example\x03org\0", false));
        assert_eq!(Order::read("subtree=true&name=a%2eb."), order(b"\x01a\x01b\0", true));
        assert_eq!(Order::read("name=.&subtree=false"), order(b"\0", false));
    }

    #[test]
    fn what_is_wrong_with_an_order_is_named() {
        for (query, problem) in [
            ("", "no name"),
            ("subtree=true", "no name"),
            ("name=", "name: ``"),
            ("name=a..b", "name: `a..b`"),
            ("name=a%2", "not well encoded"),
            ("name=a%ff", "not well encoded"),
            ("name=a&name=b", "twice"),
            ("name=a&subtree=yes", "neither true nor false"),
            ("name=a&tree=true", "`tree` is not known"),
        ] {
            let error = Order::read(query).unwrap_err();
            assert!(error.contains(problem), "{query}: {error}");
        }
    }
}
