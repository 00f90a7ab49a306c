//! `forebay top`: the pools of a running forebay, live in the terminal.
//!
//! ```text
//! fetch (a thread)       ─▶ report ─▶ model: two looks → rates, rows ─▶ screen ─▶ terminal or text
//!                                     view: keys → page, order, choice ──┘
//! ```
//!
//! | module | what |
//! |---|---|
//! | `fetch` | one look at the admin endpoint |
//! | `report` | what it says |
//! | `model` | what is known: rates, rows, restarts, absence. Pure |
//! | `view` | what is looked at. Pure |
//! | `screen` | a frame of both |

mod fetch;
mod model;
mod report;
mod screen;
mod view;

use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use forebay::sys;
use forebay::units::Span;
use forebay_core::Instant;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{self, Event, KeyEventKind};
use ratatui::{DefaultTerminal, Terminal};
use tokio::runtime;
use tokio::time::sleep;

use self::fetch::{Look, look};
use self::model::Watched;
use self::screen::About;
use self::view::View;
use crate::args::refused_options;
use crate::failure::{Failure, say};
use crate::remote::{self, Remote};
use crate::serve::Ends;

/// The options of `top`.
#[derive(Debug, clap::Args)]
#[command(args = refused_options())]
pub struct TopArgs {
    /// The admin endpoint of what is watched.
    #[arg(value_name = "http://ADMIN", default_value = "127.0.0.1:9053")]
    pub target: Remote,
    /// How often to look; rates are of what came between two looks.
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = interval)]
    pub interval: Span,
    /// Look twice, print one frame as text, and end; needs no terminal.
    #[arg(long)]
    pub once: bool,
    /// Columns of that frame [default: 80].
    #[arg(long, value_name = "N", requires = "once", value_parser = clap::value_parser!(u16).range(20..=1000))]
    pub width: Option<u16>,
    /// Its lines, at most [default: 24].
    #[arg(long, value_name = "N", requires = "once", value_parser = clap::value_parser!(u16).range(5..=1000))]
    pub height: Option<u16>,
    /// File with the token that the admin endpoint wants [default: the environment's FOREBAY_ADMIN_TOKEN].
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
}

/// Looks more often than this would be load.
const INTERVAL_MIN: Duration = Duration::from_millis(100);

/// And who looks less often than this looks at logs.
const INTERVAL_MAX: Duration = Duration::from_secs(3600);

/// How often keys are read.
const KEYS_EVERY: Duration = Duration::from_millis(50);

/// How often the screen is drawn when nothing happens: how long something is away is part of it.
const DRAWN_EVERY: Duration = Duration::from_millis(500);

fn interval(text: &str) -> Result<Span, String> {
    let span: Span = text.parse().map_err(|error: forebay::units::UnitError| error.to_string())?;
    if (INTERVAL_MIN..=INTERVAL_MAX).contains(&span.0) {
        return Ok(span);
    }
    Err(format!("{:?} to {:?} are possible", INTERVAL_MIN, INTERVAL_MAX))
}

pub(crate) fn run(args: &TopArgs) -> Result<(), Failure> {
    let token = remote::token(args.token_file.as_deref())?;
    let about = About { target: args.target.to_string(), interval: args.interval.0 };
    let watcher = Watcher { target: args.target.clone(), token };
    // Whoever is not there at the first look may be a mistake; who leaves later is waited for.
    let first = watcher.news();
    if let Err(why) = &first.look {
        return Err(Failure::failed(format!("{} {why}", args.target)));
    }
    let mut watched = Watched::default();
    watched.take(first.at, &first.clock, first.look);
    if args.once {
        return once(args, &about, watcher, watched);
    }
    if !io::stdout().is_terminal() {
        return Err(Failure::wrong(
            "top draws on a terminal, and this is none: take --once for one frame as text",
        ));
    }
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("cannot start: {error}")))?;
    let terminal = ratatui::try_init().map_err(|error| trouble(&error))?;
    // Dropping it gives the terminal back.
    let screen = Screen { terminal, about, watched, view: View { is_live: true, ..View::default() } };
    runtime.block_on(screen.live(watcher, args.interval.0)).map_err(|error| trouble(&error))
}

fn trouble(error: &io::Error) -> Failure {
    Failure::failed(format!("cannot use the terminal: {error}"))
}

/// Prints one frame as text.
fn once(args: &TopArgs, about: &About, watcher: Watcher, mut watched: Watched) -> Result<(), Failure> {
    thread::sleep(args.interval.0);
    let second = watcher.news();
    if let Err(why) = &second.look {
        return Err(Failure::failed(format!("{} {why}", args.target)));
    }
    watched.take(second.at, &second.clock, second.look);
    let (width, height) = (args.width.unwrap_or(80), args.height.unwrap_or(24));
    let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("memory does not fail");
    let drawn = terminal.draw(|frame| screen::draw(frame, about, &watched, &View::default(), second.at));
    say(&screen::text(drawn.expect("memory does not fail").buffer));
    Ok(())
}

/// Who looks at what is watched.
struct Watcher {
    target: Remote,
    token: Option<String>,
}

/// What came of a look.
struct News {
    at: Instant,
    clock: String,
    look: Result<Look, String>,
}

impl Watcher {
    #[expect(
        clippy::disallowed_methods,
        reason = "people are told the time of day; nothing is measured by it"
    )]
    fn news(&self) -> News {
        let look = look(&self.target, self.token.as_deref()).map_err(|trouble| trouble.to_string());
        News { at: sys::now(), clock: clock(SystemTime::now()), look }
    }

    /// Looks again and again on a thread, until nobody listens.
    fn start(self, interval: Duration) -> io::Result<(Receiver<News>, Sender<()>)> {
        let (to, news) = mpsc::channel();
        let (stop, stopped) = mpsc::channel();
        thread::Builder::new().name("watcher".to_owned()).spawn(move || {
            while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(interval) {
                if to.send(self.news()).is_err() {
                    return;
                }
            }
        })?;
        Ok((news, stop))
    }
}

/// The time of day in UTC: which zone people are in, nobody says.
fn clock(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() % 86_400;
    format!("{:02}:{:02}:{:02} UTC", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

/// A terminal that has been taken over. Dropping it gives it back; so does a panic.
struct Screen {
    terminal: DefaultTerminal,
    about: About,
    watched: Watched,
    view: View,
}

impl Drop for Screen {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

impl Screen {
    /// Shows what comes until somebody wants no more.
    async fn live(mut self, watcher: Watcher, interval: Duration) -> io::Result<()> {
        let mut ends = Ends::new().map_err(|failure| io::Error::other(failure.to_string()))?;
        // Dropping `_stop` ends the thread.
        let (news, _stop) = watcher.start(interval)?;
        let mut drawn_at = self.draw()?;
        loop {
            let mut is_new = false;
            while event::poll(Duration::ZERO)? {
                is_new = true;
                if let Event::Key(key) = event::read()?
                    && key.kind == KeyEventKind::Press
                    && self.view.press(key, &self.watched)
                {
                    return Ok(());
                }
            }
            for one in news.try_iter() {
                // A picture that stands still is not changed behind its looker's back.
                if !self.view.is_paused {
                    self.watched.take(one.at, &one.clock, one.look);
                    is_new = true;
                }
            }
            if is_new || sys::now().saturating_duration_since(drawn_at) >= DRAWN_EVERY {
                drawn_at = self.draw()?;
            }
            tokio::select! {
                () = sleep(KEYS_EVERY) => {}
                _ = ends.next() => return Ok(()),
            }
        }
    }

    fn draw(&mut self) -> io::Result<Instant> {
        let now = sys::now();
        let Self { terminal, about, watched, view } = self;
        terminal.draw(|frame| screen::draw(frame, about, watched, view, now))?;
        Ok(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_tells_the_time_of_day() {
        let at = |seconds| clock(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "00:00:00 UTC");
        assert_eq!(at(86_400 * 20_000 + 45_296), "12:34:56 UTC");
    }

    #[test]
    fn an_interval_is_neither_load_nor_a_log() {
        assert_eq!(interval("250ms").unwrap().0, Duration::from_millis(250));
        assert_eq!(interval("1ms").unwrap_err(), "100ms to 3600s are possible");
        assert!(interval("1").unwrap_err().contains("30s"));
    }

    #[test]
    fn a_watcher_ends_when_nobody_listens() {
        let target = format!("127.0.0.1:{}", forebay_bench::ports::free_port()).parse().unwrap();
        let (news, stop) = Watcher { target, token: None }.start(Duration::from_millis(1)).unwrap();
        assert!(news.recv().unwrap().look.unwrap_err().contains("cannot be reached"));
        drop(stop);
        assert!(news.iter().count() < 10_000, "the other end is dropped when the thread ends");
    }
}
