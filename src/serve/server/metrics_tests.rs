//! The text that Prometheus reads: every line well formed, every figure where it belongs.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

fn counted() -> Metrics {
    let metrics = Metrics::new(UNIX_EPOCH + Duration::from_millis(1500));
    metrics.opened();
    metrics.opened();
    metrics.closed();
    for milliseconds in [1, 3, 70_000] {
        let time = Duration::from_millis(milliseconds);
        metrics.answered(&Timing { prepare: time, queue: time, model: time, total: time, ..Timing::default() });
    }
    metrics.ran(Duration::from_millis(80), 3, Some(1 << 30));
    metrics.refused(Kind::Busy);
    metrics
}

/// Samples by name and labels; panics where the text breaks a rule of the format.
fn read(text: &str) -> BTreeMap<String, f64> {
    let (mut samples, mut families, mut current) = (BTreeMap::new(), BTreeSet::new(), None::<(String, String)>);
    let mut help = None;
    assert!(text.ends_with('\n'));
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, words) = rest.split_once(' ').expect("a help has words");
            assert!(!words.is_empty() && families.insert(name.to_owned()), "{name} stands there twice");
            help = Some(name.to_owned());
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("a type has a name");
            assert_eq!(help.as_deref(), Some(name), "HELP comes before TYPE");
            assert!(["counter", "gauge", "histogram"].contains(&kind));
            assert_eq!(kind == "counter", name.ends_with("_total"), "{name}");
            current = Some((name.to_owned(), kind.to_owned()));
        } else {
            let (name, value) = line.rsplit_once(' ').expect("a sample has a value");
            let (family, kind) = current.as_ref().expect("a sample has a type");
            let bare = name.split('{').next().unwrap_or_default();
            let suffixes: &[&str] = if kind == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
            assert!(suffixes.iter().any(|suffix| bare == format!("{family}{suffix}")), "{name} under {family}");
            let value = value.parse().expect("a value is a number");
            assert!(samples.insert(name.to_owned(), value).is_none(), "{name} stands there twice");
        }
    }
    samples
}

#[test]
fn the_text_keeps_the_format_and_tells_what_was_counted() {
    let samples = read(&counted().text(5));
    let expected = [
        ("pi0_requests_total", 4.0),
        ("pi0_errors_total{kind=\"busy\"}", 1.0),
        ("pi0_errors_total{kind=\"late\"}", 0.0),
        ("pi0_connections", 1.0),
        ("pi0_connections_total", 2.0),
        ("pi0_queue_length", 5.0),
        ("pi0_request_seconds_bucket{le=\"0.001\"}", 1.0),
        ("pi0_request_seconds_bucket{le=\"0.002\"}", 1.0),
        ("pi0_request_seconds_bucket{le=\"0.005\"}", 2.0),
        ("pi0_request_seconds_bucket{le=\"60\"}", 2.0),
        ("pi0_request_seconds_bucket{le=\"+Inf\"}", 3.0),
        ("pi0_request_seconds_count", 3.0),
        ("pi0_request_seconds_sum", 70.004),
        ("pi0_model_seconds_bucket{le=\"0.05\"}", 0.0),
        ("pi0_model_seconds_bucket{le=\"0.1\"}", 1.0),
        ("pi0_batch_size_bucket{le=\"2\"}", 0.0),
        ("pi0_batch_size_bucket{le=\"4\"}", 1.0),
        ("pi0_batch_size_sum", 3.0),
        ("pi0_device_memory_bytes", 1_073_741_824.0),
        ("process_start_time_seconds", 1.5),
    ];
    for (name, value) in expected {
        assert_eq!(samples.get(name), Some(&value), "{name}");
    }
    assert!(samples.contains_key(&format!("pi0_build_info{{version=\"{}\"}}", env!("CARGO_PKG_VERSION"))));
}

#[test]
fn a_device_that_does_not_tell_has_no_sample() {
    let metrics = counted();
    metrics.device_memory(None);
    assert!(!metrics.text(0).contains("pi0_device_memory_bytes"));
}

#[cfg(target_os = "linux")]
#[test]
fn the_process_has_memory() {
    assert!(resident_bytes().is_some_and(|bytes| bytes > 1 << 20));
}
