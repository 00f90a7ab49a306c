//! What `top` shows, drawn from what is known. A frame is the same for a terminal, for text and for tests.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use forebay_core::Instant;
use ratatui::Frame;
use ratatui::buffer::Buffer;
use ratatui::layout::{Alignment, Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Cell, Paragraph, Row as TableRow, Sparkline, Table, TableState, Wrap};

use super::model::{Past, Row, Watched, Wrong};
use super::view::{Page, View};
use crate::demo::figures::{grouped, percent, time};

/// How long a restart is told of.
const RESTART_TOLD: Duration = Duration::from_secs(60);

/// What stands around the figures.
#[derive(Clone, Debug)]
pub(super) struct About {
    /// What is watched.
    pub(super) target: String,
    /// How often.
    pub(super) interval: Duration,
}

/// Draws a frame as it is at `now`.
pub(super) fn draw(frame: &mut Frame<'_>, about: &About, watched: &Watched, view: &View, now: Instant) {
    let notice = notice(watched, now);
    let foot = u16::from(view.is_live);
    let [title, notice_area, body, foot] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(notice.as_ref().map_or(0, |(lines, _)| lines.len() as u16)),
        Constraint::Min(0),
        Constraint::Length(foot),
    ])
    .areas(frame.area());
    draw_title(frame, title, about, watched, view);
    if let Some((text, style)) = notice {
        frame.render_widget(Paragraph::new(text).style(style), notice_area);
    }
    match view.page {
        Page::List => draw_list(frame, body, watched, view),
        Page::Detail => draw_detail(frame, body, watched, view),
        Page::Help => frame.render_widget(Paragraph::new(HELP).wrap(Wrap { trim: false }), body),
    }
    if view.is_live {
        let order = if view.is_reversed { ", reversed" } else { "" };
        let keys = match view.page {
            Page::List => {
                format!(
                    " q end  ↑↓ choose  Enter detail  s order: {}{order}  r reverse  p pause  ? help",
                    view.sort.as_str()
                )
            }
            Page::Detail => " q end  ↑↓ choose another  Enter or Esc back  p pause  ? help".to_owned(),
            Page::Help => " q end  ? or Esc back".to_owned(),
        };
        frame.render_widget(Paragraph::new(keys).style(DIM), foot);
    }
}

fn draw_title(frame: &mut Frame<'_>, area: Rect, about: &About, watched: &Watched, view: &View) {
    let version = watched.overview.version.as_ref().map_or_else(String::new, |version| format!(" {version}"));
    let left = format!(" forebay{version} at {}, up {}", about.target, age(watched.overview.uptime));
    let right = match (view.is_paused, view.is_live) {
        (true, _) => "PAUSED ".to_owned(),
        (false, true) => format!("every {:?} ", about.interval),
        (false, false) => format!("over {:?} ", about.interval),
    };
    frame.render_widget(Paragraph::new(left).style(BRIGHT), area);
    frame.render_widget(Paragraph::new(right).alignment(Alignment::Right).style(DIM), right_part(area));
}

/// The last columns of a line, where what stands on the right cannot hide what stands on the left.
fn right_part(area: Rect) -> Rect {
    let width = area.width.min(16);
    Rect { x: area.x + area.width - width, width, ..area }
}

/// What must be known before any figure is read.
fn notice(watched: &Watched, now: Instant) -> Option<(Vec<Line<'static>>, Style)> {
    if let Some(away) = &watched.away {
        let since = age(now.saturating_duration_since(away.since));
        let first = format!(" AWAY since {} ({since}): these are the last figures", away.clock);
        return Some((vec![Line::from(first), Line::from(format!(" it {}", away.why))], BAD));
    }
    let restart = watched.restart.as_ref()?;
    let ago = now.saturating_duration_since(restart.seen);
    let times = if restart.times > 1 { format!(", the {}th time", restart.times) } else { String::new() };
    let text = format!(" restarted {} ago{times}: its counts began anew", age(ago));
    (ago <= RESTART_TOLD).then(|| (vec![Line::from(text)], WARN))
}

fn draw_list(frame: &mut Frame<'_>, area: Rect, watched: &Watched, view: &View) {
    // The chosen pool at the bottom only where the table still has room.
    let chosen = if view.is_live && area.height >= 20 && !watched.rows.is_empty() { 6 } else { 0 };
    let lines = overview(watched);
    let [head, past, table, bottom] = Layout::vertical([
        Constraint::Length(lines.len() as u16),
        Constraint::Length(if area.height >= 14 { 4 } else { 0 }),
        Constraint::Min(2),
        Constraint::Length(chosen),
    ])
    .areas(area);
    frame.render_widget(Paragraph::new(lines), head);
    draw_past(frame, past, &watched.past);
    draw_table(frame, table, watched, view);
    if chosen > 0
        && let Some(row) = watched.sorted(view.sort, view.is_reversed).get(view.place(watched))
    {
        draw_chosen(frame, bottom, row);
    }
}

/// The process as a whole, in a few lines.
fn overview(watched: &Watched) -> Vec<Line<'static>> {
    let all = &watched.overview;
    let [connecting, ready, busy, draining] = all.states;
    let mut trouble = Vec::new();
    if all.breakers_open > 0 {
        trouble.push(format!("{} open", all.breakers_open));
    }
    if all.unhealthy > 0 {
        trouble.push(format!("{} unhealthy", all.unhealthy));
    }
    let trouble = if trouble.is_empty() { String::new() } else { format!(" ({})", trouble.join(", ")) };
    let mut serves = Vec::new();
    if let Some((queries, hits)) = all.dns {
        serves.push(format!("dns {}/s, {} hits", short(Some(queries)), percent(hits)));
    }
    if let Some((requests, clients)) = all.proxy {
        serves.push(format!("proxy {} requests/s, {clients:.0} clients", short(Some(requests))));
    }
    if let Some((calls, in_flight)) = all.grpc {
        serves.push(format!("grpc {} calls/s, {in_flight:.0} in flight", short(Some(calls))));
    }
    let mut process = Vec::new();
    if let Some(cpu) = all.cpu {
        process.push(format!("{} of a core", percent(Some(cpu))));
    }
    if let Some(bytes) = all.resident_bytes {
        process.push(format!("{:.0} MiB", bytes / f64::from(1 << 20)));
    }
    if let Some((open, most)) = all.descriptors {
        process.push(format!("{open:.0} of {most:.0} descriptors"));
    }
    let mut lines = vec![
        named(
            "pools",
            format!(
                "{}{trouble}: {ready} ready, {busy} busy, {connecting} connecting, {draining} draining; {} waiters",
                watched.rows.len(),
                grouped(all.waiters)
            ),
        ),
        named(
            "lately",
            format!(
                "{} acquires/s, reuse {}, {} dials/s, {} failures/s",
                short(all.rate),
                percent(all.reuse),
                short(all.dials),
                short(all.failures)
            ),
        ),
    ];
    if !process.is_empty() {
        lines.push(named("process", process.join(", ")));
    }
    if !serves.is_empty() {
        lines.push(named("serves", serves.join("; ")));
    }
    if all.local_exhaustions > 0 {
        let times = grouped(all.local_exhaustions);
        let text = format!("this machine had no port, descriptor or memory: {times} times");
        lines.push(named("short", text).style(WARN));
    }
    lines
}

/// Three sparklines side by side.
fn draw_past(frame: &mut Frame<'_>, area: Rect, past: &Past) {
    let areas: [Rect; 3] = Layout::horizontal([Constraint::Ratio(1, 3); 3]).areas(area);
    for (area, (title, past)) in areas.into_iter().zip(kinds(past)) {
        draw_sparkline(frame, area, title, past);
    }
}

fn kinds(past: &Past) -> [(&'static str, &VecDeque<u64>); 3] {
    [("acquires/s", &past.rate), ("waiters", &past.waiters), ("dials/s", &past.dials)]
}

/// A sparkline whose newest bar stands on the right.
fn draw_sparkline(frame: &mut Frame<'_>, area: Rect, title: &str, past: &VecDeque<u64>) {
    let room = usize::from(area.width.saturating_sub(2));
    let newest = past.back().copied().unwrap_or_default();
    let most = past.iter().rev().take(room).copied().max().unwrap_or_default();
    let most = if area.width < 34 { String::new() } else { format!("(most {}) ", grouped(most)) };
    let title = format!(" {title} {} {most}", grouped(newest));
    let missing = room.saturating_sub(past.len());
    let bars: Vec<u64> = std::iter::repeat_n(0, missing)
        .chain(past.iter().skip(past.len().saturating_sub(room)).copied())
        .collect();
    let sparkline =
        Sparkline::default().block(Block::bordered().title(title).border_style(DIM)).data(bars).style(BARS);
    frame.render_widget(sparkline, area);
}

/// A column of the table.
struct Column {
    head: &'static str,
    width: u16,
    /// How soon it comes as the screen grows; 0 is always there.
    rank: u8,
    is_text: bool,
    cell: fn(&Row) -> String,
}

const COLUMNS: &[Column] = &[
    Column { head: "", width: 1, rank: 0, is_text: true, cell: |row| sign(row).to_owned() },
    Column { head: "upstream", width: 10, rank: 0, is_text: true, cell: |row| row.key.upstream.clone() },
    // As wide as there is room.
    Column { head: "endpoint", width: 0, rank: 0, is_text: true, cell: |row| row.key.endpoint.clone() },
    Column {
        head: "conns",
        width: 7,
        rank: 0,
        is_text: false,
        cell: |row| format!("{}/{}", row.connections(), row.pool.limits.connections_max),
    },
    Column { head: "busy", width: 4, rank: 0, is_text: false, cell: |row| row.states()[2].to_string() },
    Column { head: "in use", width: 6, rank: 2, is_text: false, cell: |row| row.pool.in_use.to_string() },
    Column { head: "idle", width: 4, rank: 2, is_text: false, cell: |row| row.pool.idle.to_string() },
    Column { head: "wait", width: 4, rank: 0, is_text: false, cell: |row| row.pool.waiters.to_string() },
    Column { head: "acq/s", width: 6, rank: 0, is_text: false, cell: |row| short(row.rate) },
    Column { head: "reuse", width: 6, rank: 0, is_text: false, cell: |row| share(row.reuse) },
    Column { head: "dials/s", width: 7, rank: 3, is_text: false, cell: |row| short(row.dials) },
    Column { head: "fails/s", width: 7, rank: 3, is_text: false, cell: |row| short(row.failures) },
    Column {
        head: "wait p50",
        width: 8,
        rank: 4,
        is_text: false,
        cell: |row| us(row.pool.wait.count, row.pool.wait.p50_us),
    },
    Column {
        head: "wait p99",
        width: 8,
        rank: 0,
        is_text: false,
        cell: |row| us(row.pool.wait.count, row.pool.wait.p99_us),
    },
    Column {
        head: "dial p50",
        width: 8,
        rank: 4,
        is_text: false,
        cell: |row| us(row.pool.dials.took.count, row.pool.dials.took.p50_us),
    },
    Column {
        head: "dial p99",
        width: 8,
        rank: 1,
        is_text: false,
        cell: |row| us(row.pool.dials.took.count, row.pool.dials.took.p99_us),
    },
    Column { head: "breaker", width: 9, rank: 1, is_text: true, cell: |row| row.pool.breaker.clone() },
    Column { head: "last error", width: 26, rank: 5, is_text: true, cell: last_error },
];

/// Room for an endpoint with scheme, address and port by IPv4.
const ENDPOINT_WIDTH: u16 = 27;

/// The columns that leave the endpoint room to be read, and how many cells are left over.
fn columns(width: u16) -> (Vec<&'static Column>, u16) {
    let up_to = |rank| COLUMNS.iter().filter(move |column| column.rank <= rank);
    let left = |rank| {
        let needed = up_to(rank).map(|column| column.width.max(1) + 1).sum::<u16>() + ENDPOINT_WIDTH - 2;
        width.checked_sub(needed)
    };
    let rank = (1..=5).take_while(|rank| left(*rank).is_some()).last().unwrap_or(0);
    (up_to(rank).collect(), left(rank).unwrap_or(0))
}

fn draw_table(frame: &mut Frame<'_>, area: Rect, watched: &Watched, view: &View) {
    if watched.rows.is_empty() {
        let text = " It has no pools: it serves nothing that has upstreams, or has just begun.";
        frame.render_widget(Paragraph::new(text).style(DIM), area);
        return;
    }
    let (columns, left) = columns(area.width);
    let cell = |column: &Column, text: String| {
        let side = if column.is_text { Alignment::Left } else { Alignment::Right };
        Cell::from(Line::from(text).alignment(side))
    };
    let head = TableRow::new(columns.iter().map(|column| cell(column, column.head.to_owned()))).style(DIM);
    let rows = watched.sorted(view.sort, view.is_reversed).into_iter().map(|row| {
        TableRow::new(columns.iter().map(|column| cell(column, (column.cell)(row)))).style(style(row))
    });
    let widths = columns.iter().map(|column| match column.width {
        0 => Constraint::Min(12),
        _ if column.head == "upstream" && left >= 20 => Constraint::Length(20),
        width => Constraint::Length(width),
    });
    let table = Table::new(rows, widths)
        .header(head)
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
    let mut state = TableState::default();
    if view.is_live {
        state.select(Some(view.place(watched)));
    }
    frame.render_stateful_widget(table, area, &mut state);
}

/// What is wrong, as one sign; the help explains them.
fn sign(row: &Row) -> &'static str {
    match row.trouble() {
        Wrong::Nothing => " ",
        Wrong::Waits => "w",
        Wrong::Unhealthy => "!",
        Wrong::HalfOpen => "~",
        Wrong::Open => "x",
    }
}

fn style(row: &Row) -> Style {
    match row.trouble() {
        Wrong::Nothing => Style::new(),
        Wrong::Waits | Wrong::Unhealthy | Wrong::HalfOpen => WARN,
        Wrong::Open => BAD,
    }
}

fn last_error(row: &Row) -> String {
    row.pool
        .last_failure
        .as_ref()
        .map_or("–".to_owned(), |last| format!("{}, {}", last.cause, blamed(&last.blame)))
}

/// Whose fault it was, in a word that says where to look.
fn blamed(blame: &str) -> String {
    match blame {
        "local" => "this machine's".to_owned(),
        "upstream" | "client" => format!("the {blame}'s"),
        other => other.to_owned(),
    }
}

/// The chosen pool in short.
fn draw_chosen(frame: &mut Frame<'_>, area: Rect, row: &Row) {
    let block =
        Block::bordered().title(format!(" {} {} ", row.key.upstream, row.key.endpoint)).border_style(DIM);
    frame.render_widget(Paragraph::new(short_lines(row)).block(block), area);
}

fn short_lines(row: &Row) -> Vec<Line<'static>> {
    let pool = &row.pool;
    let [connecting, ready, busy, draining] = row.states();
    let breaker = if pool.breaker_opened > 0 {
        format!("breaker {}, opened {} times", pool.breaker.replace('_', "-"), pool.breaker_opened)
    } else {
        format!("breaker {}", pool.breaker.replace('_', "-"))
    };
    vec![
        named(
            "state",
            format!(
                "{connecting} connecting, {ready} ready, {busy} busy, {draining} draining; {} idle",
                pool.idle
            ),
        ),
        named(
            "times",
            format!(
                "wait p50 {} p99 {}; dial p50 {} p99 {}",
                us(pool.wait.count, pool.wait.p50_us),
                us(pool.wait.count, pool.wait.p99_us),
                us(pool.dials.took.count, pool.dials.took.p50_us),
                us(pool.dials.took.count, pool.dials.took.p99_us)
            ),
        ),
        named("health", format!("{breaker}; active checks: {}", pool.health)),
        named("error", format!("the last: {}", last_error(row))),
    ]
}

/// Everything about the chosen pool.
fn draw_detail(frame: &mut Frame<'_>, area: Rect, watched: &Watched, view: &View) {
    let rows = watched.sorted(view.sort, view.is_reversed);
    let Some(row) = rows.get(view.place(watched)) else {
        frame.render_widget(Paragraph::new(" There is no pool to show.").style(DIM), area);
        return;
    };
    let block =
        Block::bordered().title(format!(" {} {} ", row.key.upstream, row.key.endpoint)).border_style(DIM);
    let inside = block.inner(area);
    frame.render_widget(block, area);
    let lines = detail_lines(row);
    let [text, past] =
        Layout::vertical([Constraint::Length(lines.len() as u16), Constraint::Min(0)]).areas(inside);
    frame.render_widget(Paragraph::new(lines), text);
    if past.height >= 3
        && let Some(of_pool) = watched.past_of(&row.key)
    {
        draw_past(frame, Rect { height: past.height.min(8), ..past }, of_pool);
    }
}

fn detail_lines(row: &Row) -> Vec<Line<'static>> {
    let (pool, limits) = (&row.pool, &row.pool.limits);
    let ms =
        |limit: Option<u64>| limit.map_or("none".to_owned(), |ms| format!("{:?}", Duration::from_millis(ms)));
    let percentiles = |times: super::report::Times| {
        format!(
            "p50 {}, p99 {}, most {} of {}",
            us(times.count, times.p50_us),
            us(times.count, times.p99_us),
            us(times.count, times.max_us),
            grouped(times.count)
        )
    };
    let mut lines = short_lines(row);
    lines.remove(1);
    lines.extend([
        named(
            "load",
            format!(
                "{} in use of {} × {}; {} waiters of {}; {} temporary",
                pool.in_use,
                limits.connections_max,
                limits.capacity,
                pool.waiters,
                limits.waiters_max,
                pool.temporary
            ),
        ),
        named(
            "lately",
            format!(
                "{} acquires/s, {} refused/s, {} dials/s, {} failures/s, reuse {}",
                short(row.rate),
                short(row.refused),
                short(row.dials),
                short(row.failures),
                percent(row.reuse)
            ),
        ),
        named("waits", format!("{}; lately {} on average", percentiles(pool.wait), time(row.wait_mean))),
        named(
            "dials",
            format!("{}; lately {} on average", percentiles(pool.dials.took), time(row.dial_mean)),
        ),
        named(
            "dialled",
            format!(
                "{} begun, {} made; failed: {}",
                grouped(pool.dials.started),
                grouped(pool.dials.succeeded),
                counts(&pool.dials.failed)
            ),
        ),
        named("acquires", counts(&pool.acquires)),
        named("closed", counts(&pool.closes)),
        named(
            "failures",
            format!(
                "{} of requests; out of something here {} times",
                grouped(pool.failures),
                grouped(pool.local_exhaustions)
            ),
        ),
        named(
            "limits",
            format!(
                "{} to {} kept idle, {} dials at once",
                limits.connections_min, limits.idle_max, limits.dials_max
            ),
        ),
        named(
            "ends",
            format!(
                "idle_timeout {}, age_max {}, uses_max {}",
                ms(limits.idle_timeout_ms),
                ms(limits.age_max_ms),
                limits.uses_max.map_or("none".to_owned(), grouped)
            ),
        ),
    ]);
    lines
}

/// Counts that are not nothing, with their names.
fn counts(of: &BTreeMap<String, u64>) -> String {
    let all: Vec<_> =
        of.iter().filter(|(_, n)| **n > 0).map(|(name, n)| format!("{} {name}", grouped(*n))).collect();
    if all.is_empty() { "none".to_owned() } else { all.join(", ") }
}

fn named(name: &str, text: String) -> Line<'static> {
    Line::from(vec![Span::styled(format!(" {name:<9} "), DIM), Span::from(text)])
}

/// Writes a rate in few signs.
fn short(rate: Option<f64>) -> String {
    match rate {
        None => "–".to_owned(),
        Some(rate) if rate < 0.05 => "0".to_owned(),
        Some(rate) if rate < 99.95 => format!("{rate:.1}"),
        Some(rate) if rate < 99_999.5 => grouped(rate.round() as u64),
        Some(rate) if rate < 999_500.0 => format!("{:.0}k", rate / 1e3),
        Some(rate) => format!("{:.2}M", rate / 1e6),
    }
}

/// Writes a part of one in percent, in few signs.
fn share(part: Option<f64>) -> String {
    match part {
        Some(part) if part > 0.9995 => "100 %".to_owned(),
        part => percent(part),
    }
}

/// Writes a time in microseconds; nothing when nothing was measured.
fn us(count: u64, us: f64) -> String {
    time((count > 0).then(|| Duration::from_nanos((us * 1e3) as u64)))
}

/// Writes how long something has been so, in its two largest units.
pub(super) fn age(time: Duration) -> String {
    let seconds = time.as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min {} s", seconds % 60),
        (0, ..) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}

/// A frame as text, without blanks at the ends of lines.
pub(super) fn text(buffer: &Buffer) -> String {
    let width = usize::from(buffer.area.width).max(1);
    let lines = buffer.content().chunks(width).map(|cells| {
        let line: String = cells.iter().map(ratatui::buffer::Cell::symbol).collect();
        line.trim_end().to_owned()
    });
    lines.collect::<Vec<_>>().join("\n").trim_end().to_owned()
}

const DIM: Style = Style::new().fg(Color::DarkGray);
const BRIGHT: Style = Style::new().add_modifier(Modifier::BOLD);
const WARN: Style = Style::new().fg(Color::Yellow);
const BAD: Style = Style::new().fg(Color::Red);
const BARS: Style = Style::new().fg(Color::Cyan);

const HELP: &str = "
 keys      q, Esc, Ctrl-C  end            s  next order        p  stand still
           ↑ ↓ Home End    choose a pool  r  turn it round     ?  this page
           Enter           all about the chosen pool

 columns   conns     connections in any state, of as many as there may be
           busy      connections that carry a request
           wait      requests that wait for a connection
           acq/s     connections handed out a second, lately
           reuse     share of them that existed before, lately
           wait p99  99 of 100 that waited did so for less, since the start
           dial p99  99 of 100 connections were made in less, since the start

 signs     x  breaker open: left alone after failures    !  active checks fail
           ~  breaker half-open: one probe decides        w  requests wait

 errors    of this machine: ports, descriptors, memory; these move no breaker.
           of the upstream: refused, silent, reset, TLS, protocol.

 wide terminals show more columns";

#[cfg(test)]
mod tests;
