//! When a report is of a part of its load only: the server fell silent, or its process ended.

use std::time::Duration;

use forebay_core::Instant;

/// A shorter silence at the end of a load says nothing: a few requests were lost, or slow.
const SILENCE_MIN: Duration = Duration::from_millis(100);

/// The same as a share of the load.
const SILENCE_SHARE: f64 = 0.05;

/// How a load ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ending<'a> {
    pub(crate) started: Instant,
    /// `None` without answers.
    pub(crate) last_answer: Option<Instant>,
    /// When the last of the requests began that got no answer; `None` if every request got one.
    pub(crate) last_unanswered: Option<Instant>,
    /// When there were no more requests, and none was waited for any longer.
    pub(crate) ended: Instant,
    pub(crate) answered: u64,
    pub(crate) last_error: Option<&'a str>,
}

impl Ending<'_> {
    /// Says from when on nothing was answered any more, if that was long before the end.
    pub(crate) fn silence(&self) -> Option<String> {
        let seconds = |time: Duration| format!("{:.2} s", time.as_secs_f64());
        let error = self.last_error.map_or_else(String::new, |error| format!("; last error: {error}"));
        let unanswered = self.last_unanswered?;
        let elapsed = self.ended.saturating_duration_since(self.started);
        let Some(last_answer) = self.last_answer else {
            return Some(format!("nothing was answered in {}{error}", seconds(elapsed)));
        };
        let until = last_answer.saturating_duration_since(self.started);
        let silence = elapsed.saturating_sub(until);
        // One that began before the last answer was lost or stuck by itself: others were answered meanwhile.
        (unanswered >= last_answer && silence >= SILENCE_MIN && silence >= elapsed.mul_f64(SILENCE_SHARE))
            .then(|| {
                let rate = self.answered as f64 / until.as_secs_f64().max(1e-9);
                format!(
                    "no answer after {} of {} ({rate:.0}/s until then){error}",
                    seconds(until),
                    seconds(elapsed)
                )
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ending(last_answer: Option<u64>, last_unanswered: Option<u64>, ended: u64) -> Option<String> {
        let at = |ms| Instant::ZERO + Duration::from_secs(1) + Duration::from_millis(ms);
        let ending = Ending {
            started: at(0),
            last_answer: last_answer.map(at),
            last_unanswered: last_unanswered.map(at),
            ended: at(ended),
            answered: 500,
            last_error: Some("connection refused"),
        };
        ending.silence()
    }

    #[test]
    fn a_server_that_answers_to_the_end_leaves_no_mark() {
        assert_eq!(ending(Some(5000), None, 5000), None);
        assert_eq!(ending(Some(5000), Some(4900), 5000), None, "some failed before");
        assert_eq!(ending(Some(4950), Some(4960), 5000), None, "the last few failed");
        assert_eq!(ending(Some(90_000), Some(92_000), 93_000), None, "a thirtieth of a long load");
        assert_eq!(ending(None, None, 5000), None, "nothing was asked");
    }

    #[test]
    fn one_request_that_was_stuck_to_its_time_out_is_no_silence() {
        assert_eq!(ending(Some(5000), Some(4900), 9900), None, "it began while others were answered");
        assert!(ending(Some(5000), Some(5001), 9900).is_some(), "all clients were stuck");
    }

    #[test]
    fn a_silence_is_told_from_when_on() {
        let told = ending(Some(1000), Some(4900), 5000).unwrap();
        assert_eq!(
            told,
            "no answer after 1.00 s of 5.00 s (500/s until then); last error: connection refused"
        );
        let told = ending(None, Some(0), 2000).unwrap();
        assert_eq!(told, "nothing was answered in 2.00 s; last error: connection refused");
    }
}
