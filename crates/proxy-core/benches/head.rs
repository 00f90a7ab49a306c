//! What reading a head and writing it anew costs.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use forebay_proxy_core::http1::{
    Announce, Client, ForwardedPolicy, Limits, RequestHead, RequestOut, ResponseHead, write_request,
};

const REQUEST: &[u8] = b"GET /api/v1/namespaces/default/pods?limit=500 HTTP/1.1\r\n\
    Host: api.example.com\r\n\
    User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0\r\n\
    Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\n\
    Accept-Language: en-US,en;q=0.5\r\n\
    Accept-Encoding: gzip, deflate, br, zstd\r\n\
    Cookie: session=0123456789abcdef0123456789abcdef; theme=dark\r\n\
    Authorization: Bearer 0123456789abcdef0123456789abcdef0123456789abcdef\r\n\
    Cache-Control: no-cache\r\n\
    Referer: https://api.example.com/\r\n\
    Connection: keep-alive\r\n\r\n";

const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\n\
    Server: nginx/1.26.3\r\n\
    Date: Sat, 21 Nov 2026 10:00:00 GMT\r\n\
    Content-Type: text/plain\r\n\
    Content-Length: 12\r\n\
    Connection: keep-alive\r\n\r\n";

fn heads(c: &mut Criterion) {
    let limits = Limits::default();
    let mut request = RequestHead::default();
    let mut response = ResponseHead::default();
    c.bench_function("read a request of 11 lines", |b| {
        b.iter(|| request.parse(black_box(REQUEST), &limits).expect("a head"));
    });
    c.bench_function("read a response of 6 lines", |b| {
        b.iter(|| response.parse(black_box(RESPONSE), &limits).expect("a head"));
    });
    let policy = ForwardedPolicy::default();
    let client = Client::new([192, 0, 2, 1].into(), false);
    let how = RequestOut {
        policy: &policy,
        client: &client,
        body: Announce::Nothing,
        upgrade: false,
        host: "",
        id: 0,
    };
    let mut out = Vec::new();
    request.parse(REQUEST, &limits).expect("a head");
    c.bench_function("write a request of 11 lines", |b| {
        b.iter(|| {
            out.clear();
            write_request(&mut out, black_box(REQUEST), &request, &how);
        });
    });
}

criterion_group!(benches, heads);
criterion_main!(benches);
