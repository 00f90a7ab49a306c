//! The log: structured, on the standard error.

use std::io::{self, IsTerminal};

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::{LogFormat, LogLevel, LogSettings};

/// Begins to log. Our own crates log at the level asked for, those below them only what is wrong.
pub(crate) fn init(settings: LogSettings) {
    let level = match settings.level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    let targets = Targets::new().with_default(level.min(LevelFilter::WARN)).with_target("forebay", level);
    let layer = tracing_subscriber::fmt::layer().with_writer(io::stderr);
    let layer = match settings.format {
        LogFormat::Json => layer.json().flatten_event(true).boxed(),
        LogFormat::Text => {
            let with_place = level >= LevelFilter::DEBUG;
            layer.compact().with_target(with_place).with_ansi(io::stderr().is_terminal()).boxed()
        }
    };
    // Only tests begin twice, and the first holds.
    let _ = tracing_subscriber::registry().with(layer.with_filter(targets)).try_init();
}
