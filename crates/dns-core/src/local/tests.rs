//! What is read is what is answered.

use proptest::prelude::*;

use super::*;
use crate::testing::{name, seed};
use crate::wire::Suffixes;

fn data(records: &[&str], hosts: &str) -> LocalData {
    let mut builder = LocalDataBuilder::new(seed(), 60);
    for record in records {
        builder.add_record(&LocalRecord::parse(record).unwrap());
    }
    builder.add_hosts(hosts.as_bytes(), |line, fault| panic!("{line}: {fault}"));
    builder.finish(|problem| panic!("{problem}"))
}

fn problems(records: &[&str]) -> Vec<String> {
    let mut builder = LocalDataBuilder::new(seed(), 60);
    for record in records {
        builder.add_record(&LocalRecord::parse(record).unwrap());
    }
    let mut found = Vec::new();
    builder.finish(|problem| found.push(problem.to_string()));
    found
}

/// The answer's counts, and its message from behind the question on; `None` when the name is not known.
fn answer(data: &LocalData, dotted: &str, qtype: u16) -> Option<([u16; 3], Vec<u8>)> {
    let mut suffixes = Suffixes::new();
    let name = name(dotted);
    let sets = data.find(&name, &mut suffixes)?;
    let mut out =
        [vec![0xee; 3], vec![0; 12], name.clone(), qtype.to_be_bytes().to_vec(), vec![0, 1]].concat();
    let start = out.len();
    let counts = data.write(&mut out, &name, sets, qtype, &mut suffixes);
    Some((counts, out[start..].to_vec()))
}

fn rdata(answer: &[u8]) -> &[u8] {
    &answer[12..12 + usize::from(u16::from_be_bytes([answer[10], answer[11]]))]
}

#[test]
fn records_are_read_in_the_form_of_zone_files() {
    let rdata = |text: &str| LocalRecord::parse(text).unwrap().rdata;
    assert_eq!(rdata("a.home A 192.168.1.7"), [192, 168, 1, 7]);
    assert_eq!(rdata("a.home 300 IN aaaa ::1")[15], 1);
    assert_eq!(rdata("a.home CNAME B.home."), name("b.home"));
    assert_eq!(rdata("a.home TXT one \"two words\" \"a\\\"b\\065\""), b"\x03one\x09two words\x04a\"bA");
    assert_eq!(rdata("home MX 10 mail.home"), [&[0, 10][..], &name("mail.home")].concat());
    assert_eq!(rdata("_x._tcp SRV 1 2 853 a.home"), [&[0, 1, 0, 2, 3, 85][..], &name("a.home")].concat());
    assert_eq!(rdata("7.1.168.192.in-addr.arpa PTR tv.home"), name("tv.home"));
    assert_eq!(rdata("home NS ns.home"), name("ns.home"));
    let record = LocalRecord::parse("*.Home  30 A 10.0.0.1").unwrap();
    assert_eq!((record.name, record.is_wildcard, record.ttl), (name("home"), true, Some(30)));
}

#[test]
fn a_record_that_is_wrong_is_refused_with_the_part_and_the_remedy() {
    let wrong = |text: &str| LocalRecord::parse(text).unwrap_err().to_string();
    assert!(wrong("").contains("a name is missing"));
    assert!(wrong("a.home").contains("a type is missing"));
    assert!(wrong("a.home 99999999 A 1.2.3.4").contains("99999999"));
    assert!(wrong("a.home HTTPS 1 .").contains("A AAAA CNAME TXT MX SRV PTR NS"));
    assert!(wrong("a.home A ::1").contains("`::1` is no IPv4 address"));
    assert!(wrong("a.home A").contains("an IPv4 address is missing"));
    assert!(wrong("a.home A 1.2.3.4 5").contains("`5` is more"));
    assert!(wrong("a..home A 1.2.3.4").contains("empty label"));
    assert!(wrong("a.home MX mail.home").contains("a preference"));
    assert!(wrong("a.home MX 1").contains("points to"));
    assert!(wrong("a.home TXT").contains("a text is missing"));
    assert!(wrong("a.home TXT \"open").contains("quote"));
    assert!(wrong(&format!("a.home TXT {}", "x".repeat(256))).contains("256 octets"));
}

#[test]
fn a_name_with_records_is_answered_for_every_type() {
    let data =
        data(&["tv.home 30 A 10.0.0.1", "tv.home A 10.0.0.2", "tv.home A 10.0.0.1", "tv.home TXT hi"], "");
    let (counts, records) = answer(&data, "tv.home", 1).unwrap();
    assert_eq!(counts, [2, 0, 0], "the same record twice is one");
    assert_eq!(&records[..12], &[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 30, 0, 4]);
    assert_eq!(answer(&data, "tv.home", 16).unwrap().0, [1, 0, 0]);
    assert_eq!(answer(&data, "tv.home", 255).unwrap().0, [2, 0, 0], "one set is enough for ANY");
    let (counts, records) = answer(&data, "tv.home", 28).unwrap();
    assert_eq!((counts, records[3]), ([0, 1, 0], 6), "no data, with a SOA record");
    assert_eq!(answer(&data, "home", 1), None);
    assert_eq!(answer(&data, "x.tv.home", 1), None);
}

#[test]
fn a_hosts_file_gives_addresses_and_their_names() {
    let data = data(
        &["www.home CNAME nas.home"],
        "# comment\n192.168.1.2 nas.home NAS # more\r\n\n\tfd00::2\tnas.home\n192.168.1.2 www.home other\n",
    );
    assert_eq!(rdata(&answer(&data, "nas", 1).unwrap().1), [192, 168, 1, 2]);
    assert_eq!(rdata(&answer(&data, "nas.home", 28).unwrap().1)[..2], [0xfd, 0]);
    assert_eq!(rdata(&answer(&data, "2.1.168.192.in-addr.arpa", 12).unwrap().1), name("nas.home"));
    let backwards = format!("2.{}0.0.d.f.ip6.arpa", "0.".repeat(27));
    assert_eq!(rdata(&answer(&data, &backwards, 12).unwrap().1), name("nas.home"));
    let (counts, _) = answer(&data, "www.home", 1).unwrap();
    assert_eq!(counts, [2, 0, 0], "what the configuration says of a name wins");
    assert_eq!(answer(&data, "other", 1).unwrap().0, [1, 0, 0]);
}

#[test]
fn bad_lines_of_a_hosts_file_are_told_with_their_numbers_and_left_out() {
    let mut builder = LocalDataBuilder::new(seed(), 60);
    let mut faults = Vec::new();
    let text = b"10.0.0.1 good\nnonsense here\n10.0.0.2\n10.0.0.3 b..ad fine\nfe80::1%lo0 zone\n\xff\xfe x\n";
    builder.add_hosts(text, |line, fault| faults.push((line, fault.to_string())));
    let lines: Vec<usize> = faults.iter().map(|(line, _)| *line).collect();
    assert_eq!(lines, [2, 3, 4, 5, 6]);
    assert!(faults[0].1.contains("`nonsense` is no address"));
    assert!(faults[2].1.contains("b..ad"));
    let data = builder.finish(|problem| panic!("{problem}"));
    assert!(answer(&data, "good", 1).is_some() && answer(&data, "fine", 1).is_some());
}

#[test]
fn aliases_are_followed_within_local_data() {
    let data = data(&["a.home CNAME b.home", "b.home 9 CNAME c.home", "c.home A 10.0.0.3"], "");
    let (counts, records) = answer(&data, "a.home", 1).unwrap();
    assert_eq!(counts, [3, 0, 0]);
    let target = name("b.home");
    let second = &records[12 + target.len()..];
    // Header, question and the first record's head stand before the target.
    let at = 12 + name("a.home").len() + 4 + 12;
    assert_eq!(second[..2], [0xc0, at as u8], "the second record is owned by the first one's target");
    let (counts, records) = answer(&data, "a.home", 28).unwrap();
    assert_eq!(counts, [2, 1, 0], "the aliases, and no data behind them");
    assert_eq!(records[records.len() - 1], 60);
    assert_eq!(answer(&data, "a.home", 5).unwrap().0, [1, 0, 0], "the alias itself can be asked for");
}

#[test]
fn odd_aliases_are_told_and_do_no_harm() {
    assert!(problems(&["a.home CNAME b.example"])[0].contains("`b.example`, which has no local records"));
    assert!(problems(&["a.home CNAME b.home", "b.home CNAME a.home"])[0].contains("leads to itself"));
    assert!(
        problems(&["a.home CNAME b.home", "a.home A 1.2.3.4", "b.home A 1.2.3.4"])[0]
            .contains("other records")
    );
    assert!(problems(&["a.home CNAME b.home", "b.home A 1.2.3.4"]).is_empty());
    let mut builder = LocalDataBuilder::new(seed(), 60);
    for record in ["a.home CNAME b.home", "b.home CNAME a.home", "c.home CNAME far.example"] {
        builder.add_record(&LocalRecord::parse(record).unwrap());
    }
    let data = builder.finish(|_| {});
    assert_eq!(answer(&data, "a.home", 1).unwrap().0, [9, 0, 0]);
    assert_eq!(answer(&data, "c.home", 1).unwrap().0, [1, 0, 0]);
}

#[test]
fn a_wildcard_stands_for_names_whose_closest_known_one_is_above_it() {
    let data =
        data(&["*.home A 10.0.0.1", "nas.home A 10.0.0.2", "a.deep.home A 10.0.0.3", "*.lab TXT x"], "");
    let address = |dotted: &str| {
        answer(&data, dotted, 1).map(|(counts, records)| (counts[0], rdata(&records).to_vec()))
    };
    assert_eq!(address("tv.home"), Some((1, vec![10, 0, 0, 1])));
    assert_eq!(address("a.b.tv.home"), Some((1, vec![10, 0, 0, 1])));
    assert_eq!(address("nas.home"), Some((1, vec![10, 0, 0, 2])));
    assert_eq!(address("x.nas.home"), None, "nas.home is closer, and has no wildcard");
    assert_eq!(address("deep.home").unwrap().0, 0, "it exists, without records");
    assert_eq!(address("x.deep.home"), None);
    assert_eq!(address("home"), None, "a wildcard does not stand for what it is under");
    assert_eq!(address("tv.lab").unwrap().0, 0);
    assert_eq!(address("example"), None);
}

fn list(lines: &[&str]) -> BlockList {
    let mut builder = BlockListBuilder::new(seed());
    for line in lines {
        builder.add_line(line.as_bytes()).unwrap_or_else(|fault| panic!("{line}: {fault}"));
    }
    builder.finish()
}

fn blocks(list: &BlockList, dotted: &str) -> bool {
    list.blocks(&name(dotted), &mut Suffixes::new())
}

#[test]
fn every_form_of_a_line_blocks_what_it_says() {
    let list = list(&[
        "# comment",
        "! comment",
        "[Adblock Plus]",
        "",
        "plain.example",
        "*.star.example",
        ".dot.example",
        "||filter.example^",
        "Inline.Example # comment",
        "0.0.0.0 host.example second.example\r",
        "127.0.0.1\tlocalhost ip6-loopback third.example",
        ":: fourth.example",
        "0.0.0.0 0.0.0.0",
        "255.255.255.255 broadcasthost",
        "fe80::1 localhost",
    ]);
    for blocked in [
        "plain.example",
        "a.plain.example",
        "star.example",
        "a.b.star.example",
        "dot.example",
        "filter.example",
        "x.filter.example",
        "inline.example",
        "host.example",
        "second.example",
        "third.example",
        "fourth.example",
    ] {
        assert!(blocks(&list, blocked), "{blocked}");
    }
    for free in ["example", "explain.example", "a.host.example", "localhost", "a.fourth.example", "other", ""]
    {
        assert!(!blocks(&list, free), "{free}");
    }
    assert_eq!(list.names(), 9);
}

#[test]
fn exceptions_win_whatever_stands_where() {
    let mut builder = BlockListBuilder::new(seed());
    for line in ["@@||good.ads.example^", "ads.example", "0.0.0.0 fine.example"] {
        builder.add_line(line.as_bytes()).unwrap();
    }
    builder.allow(&name("fine.example"));
    let list = builder.finish();
    assert!(blocks(&list, "ads.example") && blocks(&list, "bad.ads.example"));
    assert!(!blocks(&list, "good.ads.example") && !blocks(&list, "a.good.ads.example"));
    assert!(!blocks(&list, "fine.example"));
}

#[test]
fn lines_of_another_kind_are_faults() {
    let fault = |line: &str| BlockListBuilder::new(seed()).add_line(line.as_bytes()).unwrap_err().to_string();
    for line in [
        "<html>",
        "two words",
        "||x.example^$third-party",
        "example.com##.banner",
        "/ads[0-9]/",
        "|http://x",
        "@@|x",
        "a*b.example",
        "*",
        ".",
        "1.2.3.4",
        "||^",
        "bücher.example",
        "address=/x/0.0.0.0",
    ] {
        fault(line);
    }
    assert!(fault("192.168.1.1 router").contains("0.0.0.0"));
    assert!(fault("a..b").contains("empty label"));
    assert!(fault("0.0.0.0 good.example a..b").contains("empty label"));
}

#[test]
fn a_million_names_take_nine_bytes_each_and_no_other_is_blocked() {
    let mut builder = BlockListBuilder::new(seed());
    for n in 0..1_000_000 {
        builder.add_line(format!("n{n}.ads{}.example", n % 977).as_bytes()).unwrap();
    }
    let list = builder.finish();
    assert_eq!(list.names(), 1_000_000);
    assert!(list.bytes() < 9_000_000, "{}", list.bytes());
    let mut suffixes = Suffixes::new();
    for n in 0..50_000 {
        assert!(list.blocks(&name(&format!("n{n}.ads{}.example", n % 977)), &mut suffixes));
        assert!(!list.blocks(&name(&format!("n{n}.ads{}.example", n % 977 + 1)), &mut suffixes));
        assert!(!list.blocks(&name(&format!("m{n}.test")), &mut suffixes));
    }
}

proptest! {
    #[test]
    fn any_line_is_taken_or_refused(line in prop::collection::vec(any::<u8>(), 0..80)) {
        let mut builder = BlockListBuilder::new(seed());
        let _ = builder.add_line(&line);
        let mut data = LocalDataBuilder::new(seed(), 60);
        data.add_hosts(&line, |_, _| {});
        let _ = data.finish(|_| {});
        let _ = LocalRecord::parse(&String::from_utf8_lossy(&line));
    }

    #[test]
    fn a_list_blocks_exactly_the_subtrees_on_it(
        listed in prop::collection::vec("[ab](\\.[ab]){0,3}", 0..6),
        allowed in prop::collection::vec("[ab](\\.[ab]){1,3}", 0..3),
        asked in "[ab](\\.[ab]){0,4}",
    ) {
        let mut builder = BlockListBuilder::new(seed());
        listed.iter().for_each(|line| builder.add_line(line.as_bytes()).unwrap());
        allowed.iter().for_each(|text| builder.allow(&name(text)));
        let list = builder.finish();
        let is_under = |all: &[String]| all.iter().any(|one| asked == *one || asked.ends_with(&format!(".{one}")));
        prop_assert_eq!(blocks(&list, &asked), is_under(&listed) && !is_under(&allowed));
    }

    #[test]
    fn any_records_make_an_answer_that_can_be_read(
        records in prop::collection::vec(("(\\*\\.)?[abc](\\.[abc]){0,2}", "[abc](\\.[abc]){0,2}", 0u8..3), 0..8),
        asked in "[abc](\\.[abc]){0,3}",
        qtype in prop::sample::select(vec![1u16, 5, 16, 28, 255]),
    ) {
        let mut builder = LocalDataBuilder::new(seed(), 60);
        for (owner, target, kind) in &records {
            let text = match kind {
                0 => format!("{owner} A 10.0.0.1"),
                1 => format!("{owner} TXT {target}"),
                _ => format!("{owner} CNAME {target}"),
            };
            builder.add_record(&LocalRecord::parse(&text).unwrap());
        }
        let data = builder.finish(|_| {});
        if let Some((counts, records)) = answer(&data, &asked, qtype) {
            let question = name(&asked);
            let head = [[0, 0, 0x8180, 1, counts[0], counts[1], counts[2]].map(u16::to_be_bytes).as_flattened()[2..].to_vec(),
                question, qtype.to_be_bytes().to_vec(), vec![0, 1], records].concat();
            let mut scan = crate::wire::Scan::new();
            let scanned = scan.scan_answer(&head).unwrap();
            prop_assert_eq!(scanned.end, head.len());
        }
    }
}
