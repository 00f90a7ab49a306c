//! What a forebay says of itself, as far as it is shown: `/pools`, and a few lines of `/metrics`.

use std::collections::{BTreeMap, HashMap};

use serde::Deserialize;

use crate::remote::{Sample, samples};

/// `/pools`. What later versions add is passed over.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub(super) struct Pools {
    pub(super) uptime_seconds: f64,
    pub(super) pools: Vec<Pool>,
}

/// One pool.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub(super) struct Pool {
    pub(super) upstream: String,
    pub(super) endpoint: String,
    pub(super) connections: BTreeMap<String, u64>,
    pub(super) idle: u64,
    pub(super) temporary: u64,
    pub(super) in_use: u64,
    pub(super) waiters: u64,
    pub(super) limits: Limits,
    pub(super) acquires: BTreeMap<String, u64>,
    pub(super) reuse_rate: Option<f64>,
    pub(super) wait: Times,
    pub(super) dials: Dials,
    pub(super) closes: BTreeMap<String, u64>,
    pub(super) breaker: String,
    pub(super) breaker_opened: u64,
    pub(super) health: String,
    pub(super) failures: u64,
    pub(super) local_exhaustions: u64,
    pub(super) last_failure: Option<LastFailure>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub(super) struct Limits {
    pub(super) connections_max: u64,
    pub(super) connections_min: u64,
    pub(super) idle_max: u64,
    pub(super) capacity: u64,
    pub(super) waiters_max: u64,
    pub(super) dials_max: u64,
    pub(super) idle_timeout_ms: Option<u64>,
    pub(super) age_max_ms: Option<u64>,
    pub(super) uses_max: Option<u64>,
}

/// Percentiles since the start, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
pub(super) struct Times {
    pub(super) count: u64,
    pub(super) p50_us: f64,
    pub(super) p99_us: f64,
    pub(super) max_us: f64,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub(super) struct Dials {
    pub(super) started: u64,
    pub(super) succeeded: u64,
    pub(super) failed: BTreeMap<String, u64>,
    pub(super) took: Times,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub(super) struct LastFailure {
    pub(super) cause: String,
    pub(super) blame: String,
}

/// The samples of `/metrics` by their names.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Metrics(HashMap<String, Vec<Sample>>);

impl Metrics {
    /// Reads the text format of Prometheus.
    pub(super) fn parse(text: &str) -> Self {
        let mut by_name = HashMap::<_, Vec<_>>::new();
        for sample in samples(text) {
            by_name.entry(sample.name.clone()).or_default().push(sample);
        }
        Self(by_name)
    }

    /// Returns the samples of a metric.
    fn all(&self, name: &str) -> &[Sample] {
        self.0.get(name).map_or(&[], Vec::as_slice)
    }

    /// Returns a metric without labels.
    pub(super) fn value(&self, name: &str) -> Option<f64> {
        self.all(name).iter().find(|sample| sample.labels.is_empty()).map(|sample| sample.value)
    }

    /// Returns a metric of a pool.
    pub(super) fn of_pool(&self, name: &str, upstream: &str, endpoint: &str) -> Option<f64> {
        let is_it =
            |sample: &&Sample| sample.label("upstream") == upstream && sample.label("endpoint") == endpoint;
        self.all(name).iter().find(is_it).map(|sample| sample.value)
    }

    /// Returns the sum of a metric over all its labels; `None` if it is not there at all.
    pub(super) fn sum(&self, name: &str) -> Option<f64> {
        let all = self.all(name);
        (!all.is_empty()).then(|| all.iter().map(|sample| sample.value).sum())
    }

    /// Returns what a label of a metric says.
    pub(super) fn label(&self, name: &str, label: &str) -> Option<&str> {
        self.all(name).first().map(|sample| sample.label(label))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_found_by_name_and_by_pool() {
        let metrics = Metrics::parse(
            "# HELP a b.\n# TYPE a counter\nprocess_open_fds 12\nforebay_build_info{version=\"0.1.0\"} 1\n\
             w_sum{upstream=\"default\",endpoint=\"udp://[::1]:53\"} 0.5\nr{proxy=\"a\"} 1\nr{proxy=\"b\"} 2\n\
             r_more 50\nnot a sample\n",
        );
        assert_eq!(metrics.value("process_open_fds"), Some(12.0));
        assert_eq!(metrics.of_pool("w_sum", "default", "udp://[::1]:53"), Some(0.5));
        assert_eq!(metrics.of_pool("w_sum", "other", "udp://[::1]:53"), None);
        assert_eq!((metrics.sum("r"), metrics.sum("s")), (Some(3.0), None));
        assert_eq!(metrics.label("forebay_build_info", "version"), Some("0.1.0"));
    }

    #[test]
    fn another_servers_json_is_no_report_and_a_later_forebays_is() {
        assert!(serde_json::from_str::<Pools>("{\"pools\": []}").is_err());
        assert!(serde_json::from_str::<Pools>("{\"uptime_seconds\": 1, \"pools\": [{}]}").is_err());
        let later = "{\"uptime_seconds\": 1.5, \"pools\": [], \"more\": true}";
        assert_eq!(serde_json::from_str::<Pools>(later).unwrap().uptime_seconds, 1.5);
    }
}
