//! The demo's screen.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Cell, Paragraph, Row, Sparkline, Table};
use ratatui::{DefaultTerminal, Frame};

use super::Poster;
use super::figures::{Figures, grouped, percent, time};

/// How many bars of the past are kept: more than a terminal is wide.
const PAST_MAX: usize = 512;

/// A terminal that has been taken over. Dropping it gives it back; so does a panic.
pub(super) struct Screen {
    terminal: DefaultTerminal,
    picture: Picture,
}

/// What is on the screen.
struct Picture {
    poster: Poster,
    figures: Option<Figures>,
    /// Queries per second, newest first.
    past: VecDeque<u64>,
}

impl Screen {
    pub(super) fn open(poster: Poster) -> io::Result<Self> {
        let mut screen = Self { terminal: ratatui::try_init()?, picture: Picture::new(poster) };
        screen.draw()?;
        Ok(screen)
    }

    /// Whether somebody pressed a key that ends the demo.
    pub(super) fn wants_end(&mut self) -> io::Result<bool> {
        while event::poll(Duration::ZERO)? {
            match event::read()? {
                Event::Key(key) if key.kind == KeyEventKind::Press => {
                    let is_interrupt =
                        key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
                    if is_interrupt || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc) {
                        return Ok(true);
                    }
                }
                Event::Resize(..) => self.draw()?,
                _ => {}
            }
        }
        Ok(false)
    }

    pub(super) fn show(&mut self, figures: &Figures) -> io::Result<()> {
        self.picture.take(figures);
        self.draw()
    }

    fn draw(&mut self) -> io::Result<()> {
        self.terminal.draw(|frame| self.picture.draw(frame)).map(drop)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

impl Picture {
    fn new(poster: Poster) -> Self {
        Self { poster, figures: None, past: VecDeque::new() }
    }

    fn take(&mut self, figures: &Figures) {
        self.past.push_front(figures.qps.round() as u64);
        self.past.truncate(PAST_MAX);
        self.figures = Some(figures.clone());
    }

    fn draw(&self, frame: &mut Frame<'_>) {
        let [head, middle, pools] =
            Layout::vertical([Constraint::Length(7), Constraint::Length(10), Constraint::Min(4)])
                .areas(frame.area());
        self.draw_head(frame, head);
        let [left, right] = Layout::horizontal([Constraint::Length(46), Constraint::Min(10)]).areas(middle);
        let foot = Block::bordered().title(" pools ").title_bottom(" q or Ctrl-C ends the demo ");
        frame.render_widget(&foot, pools);
        let pools = foot.inner(pools);
        let Some(figures) = &self.figures else { return };
        draw_figures(frame, left, figures);
        self.draw_past(frame, right);
        draw_pools(frame, pools, figures);
    }

    fn draw_head(&self, frame: &mut Frame<'_>, area: Rect) {
        let mut lines = vec![
            Line::from(self.poster.what.as_str()),
            Line::from(vec![Span::styled("try    ", DIM), Span::styled(&self.poster.dig, BRIGHT)]),
        ];
        if let Some(kdig) = &self.poster.kdig {
            lines.push(Line::from(vec![Span::styled("  or   ", DIM), Span::styled(kdig, BRIGHT)]));
        }
        lines.push(Line::from(vec![Span::styled("  or   ", DIM), Span::styled(&self.poster.curl, BRIGHT)]));
        if let Some(admin) = &self.poster.admin {
            lines.push(Line::from(vec![Span::styled("admin  ", DIM), Span::styled(admin, BRIGHT)]));
        }
        let uptime = self.figures.as_ref().map_or(0, |figures| figures.uptime.as_secs());
        let block = Block::bordered()
            .title(" forebay demo ")
            .title(Line::from(format!(" {uptime} s ")).right_aligned());
        frame.render_widget(Paragraph::new(lines).block(block), area);
    }

    fn draw_past(&self, frame: &mut Frame<'_>, area: Rect) {
        let block = Block::bordered().title(" queries per second ");
        let room = usize::from(area.width.saturating_sub(2));
        let past: Vec<u64> = self.past.iter().take(room).rev().copied().collect();
        frame.render_widget(
            Sparkline::default().block(block).data(past).style(Style::new().fg(Color::Cyan)),
            area,
        );
    }
}

fn draw_figures(frame: &mut Frame<'_>, area: Rect, figures: &Figures) {
    let connections = figures.connections().map(|(state, n)| format!("{n} {state}"));
    let mebibytes = figures.cache_bytes as f64 / f64::from(1 << 20);
    let rows = [
        (
            "queries",
            format!(
                "{}/s, {} so far, {} lost",
                grouped(figures.qps.round() as u64),
                grouped(figures.queries),
                figures.lost
            ),
        ),
        (
            "hits",
            format!(
                "{}, {} answers, {mebibytes:.1} MiB",
                percent(figures.hit_rate),
                grouped(figures.cache_entries)
            ),
        ),
        (
            "upstream",
            format!("{}/s, {} in flight", grouped(figures.upstream_qps.round() as u64), figures.questions),
        ),
        ("latency", format!("p50 {}  p99 {}", time(figures.latency.p50), time(figures.latency.p99))),
        ("wait", format!("p50 {}  p99 {}", time(figures.wait.p50), time(figures.wait.p99))),
        ("sockets", format!("{} made, reuse {}", grouped(figures.sockets), percent(figures.reuse))),
        ("state", connections[1..].join(", ")),
        (
            "http",
            format!(
                "{}/s, reuse {}, {} failed",
                grouped(figures.web.rate.round() as u64),
                percent(figures.web.reuse),
                figures.web.failed
            ),
        ),
    ];
    let lines: Vec<_> = rows
        .into_iter()
        .map(|(name, value)| Line::from(vec![Span::styled(format!("{name:<10}"), DIM), Span::from(value)]))
        .collect();
    frame.render_widget(Paragraph::new(lines).block(Block::bordered().title(" the last second ")), area);
}

fn draw_pools(frame: &mut Frame<'_>, area: Rect, figures: &Figures) {
    let head = ["endpoint", "ready", "busy", "in use", "waiters", "made", "reuse", "dial p50"];
    let rows = figures.pools.iter().chain(&figures.web.pools).map(|pool| {
        Row::new([
            Cell::from(pool.endpoint.as_str()),
            Cell::from(pool.ready.to_string()),
            Cell::from(pool.busy.to_string()),
            Cell::from(pool.in_use.to_string()),
            Cell::from(pool.waiting.to_string()),
            Cell::from(grouped(pool.sockets)),
            Cell::from(percent(pool.reuse)),
            Cell::from(time(pool.dial.p50)),
        ])
    });
    let widths = [28, 6, 5, 7, 8, 6, 8, 8].map(Constraint::Length);
    frame.render_widget(Table::new(rows, widths).header(Row::new(head).style(DIM)), area);
}

const DIM: Style = Style::new().fg(Color::DarkGray);
const BRIGHT: Style = Style::new().add_modifier(Modifier::BOLD);

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::super::figures::PoolFigures;
    use super::super::web::WebFigures;
    use super::*;

    fn drawn(width: u16, height: u16) -> String {
        let poster = Poster {
            what: "dns on 127.0.0.1:5300".to_owned(),
            dig: "dig @127.0.0.1 -p 5300 anything.example".to_owned(),
            kdig: Some("kdig @127.0.0.1 -p 5853 +tls anything.example".to_owned()),
            curl: "curl http://127.0.0.1:8080/head".to_owned(),
            admin: Some("http://127.0.0.1:9053/pools".to_owned()),
        };
        let mut picture = Picture::new(poster);
        picture.take(&Figures {
            qps: 4012.4,
            hit_rate: Some(0.875),
            sockets: 1234,
            pools: vec![PoolFigures {
                endpoint: "udp://127.0.0.1:9".to_owned(),
                ready: 8,
                ..PoolFigures::default()
            }],
            web: WebFigures {
                rate: 199.7,
                failed: 3,
                pools: ["http://127.0.0.1:7", "http://127.0.0.1:8"]
                    .map(|endpoint| PoolFigures { endpoint: endpoint.to_owned(), ..PoolFigures::default() })
                    .into(),
                ..WebFigures::default()
            },
            ..Figures::default()
        });
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| picture.draw(frame)).unwrap();
        terminal.backend().to_string()
    }

    #[test]
    fn a_small_terminal_shows_what_matters() {
        let screen = drawn(80, 24);
        for text in [
            "dig @127.0.0.1 -p 5300 anything.example",
            "http://127.0.0.1:9053/pools",
            "4,012/s",
            "87.5 %",
            "1,234 made",
            "udp://127.0.0.1:9",
            "q or Ctrl-C",
            "curl http://127.0.0.1:8080/head",
            "200/s, reuse –, 3 failed",
            "http://127.0.0.1:7",
            "http://127.0.0.1:8",
        ] {
            assert!(screen.contains(text), "{text} is not on\n{screen}");
        }
    }

    #[test]
    fn a_tiny_terminal_is_survived() {
        for (width, height) in [(1, 1), (10, 3), (20, 10)] {
            drawn(width, height);
        }
    }
}
