//! What is asked for: the parts of an HTTP request that say which query it carries (RFC 8484 §4.1).

use forebay_dns_core::web::decode_base64url;
use http::header::{ACCEPT, ALLOW, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, Method, StatusCode, Uri};

use super::MEDIA_TYPE;

/// Where the query of a good request is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// It was in the URI.
    Query(Vec<u8>),
    /// It follows as the body.
    Body,
}

/// What is wrong with a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) status: StatusCode,
    /// For the person who looks at the response.
    pub(super) text: &'static str,
    /// What tells the client how it is done right.
    pub(super) header: Option<(HeaderName, &'static str)>,
}

impl Fault {
    const fn new(status: StatusCode, text: &'static str) -> Self {
        Self { status, text, header: None }
    }

    /// Too much for a DNS message.
    pub(super) const fn too_large() -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "a DNS message has 65535 bytes at most\n")
    }

    /// The server has ended.
    pub(super) const fn ended() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "the server is shutting down\n")
    }

    /// Something, but no query.
    pub(super) const fn no_query() -> Self {
        Self::new(StatusCode::BAD_REQUEST, "this is not a DNS query\n")
    }
}

/// Reads method, target and headers of a request to a server that answers under `path`.
pub(super) fn read(path: &str, method: &Method, uri: &Uri, headers: &HeaderMap) -> Result<Asked, Fault> {
    if uri.path() != path {
        return Err(Fault::new(StatusCode::NOT_FOUND, "DNS is not answered under this path\n"));
    }
    match *method {
        Method::GET => in_uri(uri),
        Method::POST => in_body(headers),
        // RFC 9110 §15.5.6.
        _ => Err(Fault {
            header: Some((ALLOW, "GET, POST")),
            ..Fault::new(StatusCode::METHOD_NOT_ALLOWED, "ask with GET or POST\n")
        }),
    }
}

fn in_uri(uri: &Uri) -> Result<Asked, Fault> {
    let mut parameters = uri.query().unwrap_or_default().split('&');
    let Some(text) = parameters.find_map(|parameter| parameter.strip_prefix("dns=")) else {
        return Err(Fault::new(StatusCode::BAD_REQUEST, "the parameter `dns` is missing\n"));
    };
    let mut query = Vec::new();
    if !decode_base64url(text.as_bytes(), &mut query) {
        let text = "the parameter `dns` is not base64url without padding (RFC 4648, section 5)\n";
        return Err(Fault::new(StatusCode::BAD_REQUEST, text));
    }
    Ok(Asked::Query(query))
}

fn in_body(headers: &HeaderMap) -> Result<Asked, Fault> {
    if !is_dns_message(headers) {
        return Err(Fault {
            header: Some((ACCEPT, MEDIA_TYPE)),
            ..Fault::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "the body must be application/dns-message\n")
        });
    }
    Ok(Asked::Body)
}

/// Whether the content is said to be a DNS message; parameters change nothing (RFC 9110 §8.3.1).
pub(super) fn is_dns_message(headers: &HeaderMap) -> bool {
    let name = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    name.split(';').next().is_some_and(|name| name.trim().eq_ignore_ascii_case(MEDIA_TYPE))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(method: Method, uri: &str, headers: &[(HeaderName, &'static str)]) -> Result<Asked, Fault> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(name, http::HeaderValue::from_static(value));
        }
        read("/dns-query", &method, &uri.parse().unwrap(), &map)
    }

    fn status(result: Result<Asked, Fault>) -> u16 {
        result.unwrap_err().status.as_u16()
    }

    #[test]
    fn get_has_its_query_in_the_parameter_dns_wherever_it_stands() {
        for uri in ["/dns-query?dns=Zm9v", "https://dns.example/dns-query?ct&dns=Zm9v&x=1"] {
            assert_eq!(ask(Method::GET, uri, &[]), Ok(Asked::Query(b"foo".to_vec())));
        }
        for uri in
            ["/dns-query", "/dns-query?", "/dns-query?name=a", "/dns-query?dns=Zm8=", "/dns-query?dns=Zm8%3D"]
        {
            assert_eq!(status(ask(Method::GET, uri, &[])), 400, "{uri}");
        }
    }

    #[test]
    fn other_paths_are_not_found_and_other_methods_are_told_which_are_allowed() {
        assert_eq!(status(ask(Method::GET, "/?dns=Zm9v", &[])), 404);
        assert_eq!(status(ask(Method::POST, "/dns-query/", &[])), 404);
        let fault = ask(Method::PUT, "/dns-query", &[]).unwrap_err();
        assert_eq!((fault.status.as_u16(), fault.header), (405, Some((ALLOW, "GET, POST"))));
    }

    #[test]
    fn a_body_must_be_said_to_be_a_dns_message() {
        let of = |kind| ask(Method::POST, "/dns-query", &[(CONTENT_TYPE, kind)]);
        assert_eq!(of("application/dns-message"), Ok(Asked::Body));
        assert_eq!(of("Application/DNS-Message; charset=x"), Ok(Asked::Body));
        assert_eq!(status(of("application/dns-json")), 415);
        assert_eq!(status(ask(Method::POST, "/dns-query", &[])), 415);
    }
}
