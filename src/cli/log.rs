//! What happens in a server, a line each, on stderr: in openpi's form or as JSON.
//!
//! Source of the form: openpi 15a9616, scripts/train.py, `init_logging`: `HH:MM:SS.mmm [I] message (pid:file:line)`, the
//! message filled up to 80 characters. Invariant: one event is one line, whatever a client wrote; times are UTC, for a server's
//! log is read on other machines.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::serve::policy::Kind;
use crate::serve::server::event::{Event, Listener, What, Why};

/// How wide openpi's messages are at least.
const WIDTH: usize = 80;

/// How lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Form {
    /// As openpi's: `HH:MM:SS.mmm [I] message (pid:file:line)`
    Text,
    /// One JSON object a line
    Json,
}

/// Writes every event to stderr. A stderr that is closed is no reason to end.
pub fn listener(form: Form) -> Listener {
    Arc::new(move |event| {
        let line = line(event, form, std::process::id());
        // In one piece, so that the lines of two threads do not mix.
        let _ = std::io::stderr().lock().write_all(line.as_bytes());
    })
}

/// The line of an event, with its end.
pub fn line(event: &Event, form: Form, pid: u32) -> String {
    let (file, at) =
        (Path::new(event.place.file()).file_name().unwrap_or_default().to_string_lossy(), event.place.line());
    match form {
        Form::Text => {
            let (clock, letter) = (clock(event.at), level(&event.what).0);
            let message = one_line(&message(&event.what));
            format!("{clock} [{letter}] {message:<WIDTH$} ({pid}:{file}:{at})\n")
        }
        Form::Json => {
            let mut value = members(&event.what);
            value.insert("level".to_owned(), level(&event.what).1.into());
            value.insert("message".to_owned(), message(&event.what).into());
            value.insert("place".to_owned(), format!("{file}:{at}").into());
            value.insert("pid".to_owned(), pid.into());
            value.insert("time".to_owned(), date(event.at).into());
            format!("{}\n", serde_json::Value::Object(value))
        }
    }
}

/// openpi's letter, and the word.
fn level(what: &What) -> (char, &'static str) {
    let (info, warning, error) = (('I', "info"), ('W', "warning"), ('E', "error"));
    match what {
        What::Listening { .. } | What::Opened { .. } | What::Answered { .. } => info,
        What::Stopping { .. } | What::Stopped { .. } => info,
        What::Closed { why, .. } => match why {
            Why::Left(_) | Why::Ending | Why::Refused => info,
            Why::Vanished(_) | Why::Silent | Why::Deaf | Why::Protocol(_) => warning,
        },
        What::Refused { refusal, .. } => match refusal.kind {
            Kind::Answer | Kind::Internal => error,
            Kind::Malformed | Kind::Observation | Kind::Busy | Kind::Late | Kind::Ending => warning,
        },
        What::TurnedAway { .. } => warning,
        What::Panicked { .. } | What::NotKept { .. } | What::NotAccepted { .. } => error,
    }
}

/// For people; the first two as openpi's server says them.
fn message(what: &What) -> String {
    match what {
        What::Opened { client, peer } => format!("Connection from {peer} opened (client {client})"),
        What::Closed { client, peer, why } => {
            format!("Connection from {peer} closed (client {client}): {}", ended(why))
        }
        What::Listening { address } => format!("Serving at ws://{address}"),
        What::Answered { client, timing, .. } => format!(
            "Client {client}: actions in {:.1} ms: prepare {:.1}, queue {:.1}, model {:.1}, batch {}",
            ms(timing.total),
            ms(timing.prepare),
            ms(timing.queue),
            ms(timing.model),
            timing.batch
        ),
        What::Refused { client, refusal, .. } => {
            let (kind, message, detail) = (refusal.kind.name(), &refusal.message, &refusal.detail);
            let detail = if detail.is_empty() { String::new() } else { format!(" [{detail}]") };
            format!("Client {client}: refused ({kind}): {message}{detail}")
        }
        What::TurnedAway { peer, status, why } => format!("Connection from {peer} turned away ({status}): {why}"),
        What::Panicked { during, message } => format!("The policy panicked in {during}: {message}"),
        What::NotKept { why } => format!("Not recorded: {why}"),
        What::NotAccepted { why } => format!("A connection could not be accepted: {why}"),
        What::Stopping { waiting } => format!("Stopping; requests that wait: {waiting}"),
        What::Stopped { answered, refused } => format!("Stopped; answered {answered}, refused {refused}"),
    }
}

fn ended(why: &Why) -> String {
    match why {
        Why::Left(Some(code)) => format!("it left ({code})"),
        Why::Left(None) => "it left".to_owned(),
        Why::Vanished(error) => format!("it vanished: {error}"),
        Why::Silent => "it answered no ping".to_owned(),
        Why::Deaf => "it did not read what it was sent".to_owned(),
        Why::Protocol(error) => format!("no websocket frame: {error}"),
        Why::Refused => "a request was refused".to_owned(),
        Why::Ending => "the server ends".to_owned(),
    }
}

/// For machines: the event's name and what it carries.
fn members(what: &What) -> serde_json::Map<String, serde_json::Value> {
    let value = match what {
        What::Listening { address } => serde_json::json!({"event": "listening", "address": address.to_string()}),
        What::Opened { client, peer } => {
            serde_json::json!({"event": "opened", "client": client, "peer": peer.to_string()})
        }
        What::Closed { client, peer, why } => {
            let name = match why {
                Why::Left(_) => "left",
                Why::Vanished(_) => "vanished",
                Why::Silent => "silent",
                Why::Deaf => "deaf",
                Why::Protocol(_) => "protocol",
                Why::Refused => "refused",
                Why::Ending => "ending",
            };
            serde_json::json!({"event": "closed", "client": client, "peer": peer.to_string(), "why": name})
        }
        What::Answered { client, peer, timing } => serde_json::json!({
            "event": "answered", "client": client, "peer": peer.to_string(),
            "prepare_ms": ms(timing.prepare), "queue_ms": ms(timing.queue), "model_ms": ms(timing.model),
            "total_ms": ms(timing.total), "batch": timing.batch,
            "received_bytes": timing.received_bytes, "sent_bytes": timing.sent_bytes,
        }),
        What::Refused { client, peer, refusal } => serde_json::json!({
            "event": "refused", "client": client, "peer": peer.to_string(),
            "kind": refusal.kind.name(), "told": refusal.message, "detail": refusal.detail,
        }),
        What::TurnedAway { peer, status, .. } => {
            serde_json::json!({"event": "turned_away", "peer": peer.to_string(), "status": status})
        }
        What::Panicked { during, .. } => serde_json::json!({"event": "panicked", "during": during}),
        What::NotKept { .. } => serde_json::json!({"event": "not_kept"}),
        What::NotAccepted { .. } => serde_json::json!({"event": "not_accepted"}),
        What::Stopping { waiting } => serde_json::json!({"event": "stopping", "waiting": waiting}),
        What::Stopped { answered, refused } => {
            serde_json::json!({"event": "stopped", "answered": answered, "refused": refused})
        }
    };
    match value {
        serde_json::Value::Object(members) => members,
        _ => serde_json::Map::new(),
    }
}

/// A foreign text makes no lines of its own, and moves no cursor.
fn one_line(text: &str) -> String {
    text.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).collect()
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// `HH:MM:SS.mmm`, UTC.
fn clock(at: SystemTime) -> String {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = since.as_secs() % 86_400;
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{hours:02}:{minutes:02}:{seconds:02}.{:03}", since.subsec_millis())
}

/// `YYYY-MM-DDTHH:MM:SS.mmmZ`.
fn date(at: SystemTime) -> String {
    let days = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() / 86_400;
    // Years that begin in March: the day that comes and goes is the last. Era of 400 years, 146 097 days; 1970-01-01 is day
    // 719 468 of era 0.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let shifted = (5 * day + 2) / 153;
    let (day, month) = (day - (153 * shifted + 2) / 5 + 1, if shifted < 10 { shifted + 3 } else { shifted - 9 });
    let year = era * 400 + year + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{}Z", clock(at))
}

#[cfg(test)]
mod tests {
    use std::panic::Location;

    use super::*;
    use crate::serve::policy::Refusal;

    #[track_caller]
    fn event(what: What) -> Event {
        Event { at: UNIX_EPOCH + Duration::from_millis(1_709_210_096_789), place: Location::caller(), what }
    }

    fn refused(message: &str) -> What {
        let peer = ([127, 0, 0, 1], 4711).into();
        let refusal = Refusal::new(Kind::Observation, message).because("in /a/secret/path");
        What::Refused { client: 3, peer, refusal }
    }

    #[test]
    fn a_line_has_openpis_form() {
        let happened = event(What::Opened { client: 1, peer: ([127, 0, 0, 1], 4711).into() });
        let at = happened.place.line();
        let message = "Connection from 127.0.0.1:4711 opened (client 1)";
        assert_eq!(line(&happened, Form::Text, 77), format!("12:34:56.789 [I] {message:<80} (77:log.rs:{at})\n"));
    }

    #[test]
    fn a_foreign_text_stays_on_its_line() {
        for form in [Form::Text, Form::Json] {
            let line = line(&event(refused("state\n00:00:00.000 [I] all is well\u{1b}[2J: it is missing")), form, 77);
            assert_eq!(line.matches('\n').count(), 1, "{line}");
            assert!(!line.contains('\u{1b}'), "{line}");
        }
    }

    #[test]
    fn json_carries_the_event() {
        let line = line(&event(refused("state: it is missing")), Form::Json, 77);
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        for (key, expected) in [
            ("event", "refused"),
            ("kind", "observation"),
            ("told", "state: it is missing"),
            ("detail", "in /a/secret/path"),
            ("level", "warning"),
            ("time", "2024-02-29T12:34:56.789Z"),
        ] {
            assert_eq!(value[key], expected, "{key}");
        }
    }

    #[test]
    fn days_are_those_of_the_calendar() {
        for (seconds, expected) in [
            (0, "1970-01-01"),
            (951_782_400, "2000-02-29"),
            (951_868_800, "2000-03-01"),
            (4_107_542_399, "2100-02-28"),
            (4_107_542_400, "2100-03-01"),
            (1_767_225_599, "2025-12-31"),
        ] {
            assert_eq!(&date(UNIX_EPOCH + Duration::from_secs(seconds))[..10], expected);
        }
    }
}
