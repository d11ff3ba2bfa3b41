//! A value as it is typed after `key=`, read as its field's type.
//!
//! Spellings are those of tyro and TOML: `True` and `true`, `None`, `30_000` and `3e4`, text with or without quotes.

use anyhow::{Result, bail, ensure};
use toml::Value;

/// Largest whole number that f64 has exactly, and with it its neighbours.
const EXACT: f64 = 9_007_199_254_740_992.0;

/// What a field takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Bool,
    Count,
    Number,
    Text,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// Several texts.
    Texts,
    /// Whatever TOML can say.
    Any,
}

impl Kind {
    fn expected(self) -> String {
        match self {
            Kind::Bool => "True or False".into(),
            Kind::Count => "a whole number".into(),
            Kind::Number => "a number".into(),
            Kind::Text => "text".into(),
            Kind::Choice(words) => words.join(" or "),
            Kind::Texts => "a list, such as [\"a\", \"b\"]".into(),
            Kind::Any => "a value as TOML writes it".into(),
        }
    }

    /// Reads `text`. The message has what was expected and what was found, not the name.
    pub(super) fn read(self, text: &str) -> Result<Value> {
        let text = text.trim();
        let value = match self {
            Kind::Bool => match text {
                "True" | "true" => Some(Value::Boolean(true)),
                "False" | "false" => Some(Value::Boolean(false)),
                _ => None,
            },
            Kind::Count => count(text),
            Kind::Number => number(text).map(Value::Float),
            Kind::Text => Some(Value::String(unquoted(text).to_owned())),
            Kind::Choice(words) => {
                let plain = unquoted(text);
                words.contains(&plain).then(|| Value::String(plain.to_owned()))
            }
            Kind::Texts => texts(text),
            Kind::Any => {
                let Some(value) = any(text) else { bail!("expected {}, found {text}", self.expected()) };
                return Ok(value);
            }
        };
        ensure!(!(text.is_empty() && self != Kind::Text), "expected {}, found nothing", self.expected());
        match value {
            Some(value) => Ok(value),
            None => bail!("expected {}, found {text}", self.expected()),
        }
    }
}

/// Does this mean that there is none?
pub(super) fn is_none(text: &str) -> bool {
    matches!(text.trim(), "None" | "none" | "null")
}

/// Text without the quotes around it.
pub(super) fn unquoted(text: &str) -> &str {
    let inside = |quote: char| text.strip_prefix(quote)?.strip_suffix(quote);
    inside('"').or_else(|| inside('\'')).unwrap_or(text)
}

fn number(text: &str) -> Option<f64> {
    // Rust reads `inf` and `nan` too, and so would TOML.
    let text = text.replace('_', "");
    let begins = text.starts_with(|c: char| c.is_ascii_digit() || "+-.".contains(c));
    text.parse().ok().filter(|x: &f64| begins && x.is_finite())
}

fn count(text: &str) -> Option<Value> {
    let plain = text.replace('_', "");
    if let Ok(n) = plain.parse::<i64>() {
        return (n >= 0).then_some(Value::Integer(n));
    }
    let x = number(text)?;
    (x >= 0.0 && x.fract() == 0.0 && x < EXACT).then_some(Value::Integer(x as i64))
}

fn texts(text: &str) -> Option<Value> {
    if text.starts_with('[') {
        let Value::Array(items) = any(text)? else { return None };
        return items.iter().all(Value::is_str).then_some(Value::Array(items));
    }
    let items = text.split(',').map(|item| Value::String(unquoted(item.trim()).to_owned()));
    Some(Value::Array(items.collect()))
}

/// TOML, or JSON, which people paste; of null there is nothing in TOML.
fn any(text: &str) -> Option<Value> {
    let toml = toml::from_str::<toml::Table>(&format!("x = {text}")).ok();
    if let Some(value) = toml.filter(|t| t.len() == 1).and_then(|mut table| table.remove("x")) {
        return Some(value);
    }
    serde_json::from_str::<serde_json::Value>(text).ok().and_then(|json| Value::try_from(json).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_has_many_spellings() {
        for text in ["30_000", "3e4", "30000", " 30000 ", "3.0E4"] {
            assert_eq!(Kind::Count.read(text).expect("a number"), Value::Integer(30_000), "{text}");
        }
        for text in ["2.5e-5", "0.000_025", "+25e-6"] {
            assert_eq!(Kind::Number.read(text).expect("a number"), Value::Float(2.5e-5), "{text}");
        }
        for text in ["True", "true"] {
            assert_eq!(Kind::Bool.read(text).expect("a truth"), Value::Boolean(true), "{text}");
        }
        for text in ["a b", "'a b'", "\"a b\""] {
            assert_eq!(Kind::Text.read(text).expect("text"), Value::String("a b".into()), "{text}");
        }
        for text in ["a,b", "['a', \"b\"]", "[\"a\",\"b\"]", " a , 'b' "] {
            let list = Value::Array(vec![Value::String("a".into()), Value::String("b".into())]);
            assert_eq!(Kind::Texts.read(text).expect("a list"), list, "{text}");
        }
        let table = Kind::Any.read(r#"{"reset_pose": [0, -1.5]}"#).expect("JSON");
        assert_eq!(table, Kind::Any.read("{ reset_pose = [0, -1.5] }").expect("TOML"));
    }

    #[test]
    fn what_a_value_is_not_is_told() {
        let refusal = |kind: Kind, text: &str| kind.read(text).unwrap_err().to_string();
        assert_eq!(refusal(Kind::Count, "many"), "expected a whole number, found many");
        assert_eq!(refusal(Kind::Count, "1.5"), "expected a whole number, found 1.5");
        assert_eq!(refusal(Kind::Count, "-1"), "expected a whole number, found -1");
        assert_eq!(refusal(Kind::Count, "1e30"), "expected a whole number, found 1e30");
        assert_eq!(refusal(Kind::Number, "inf"), "expected a number, found inf");
        assert_eq!(refusal(Kind::Number, ""), "expected a number, found nothing");
        assert_eq!(refusal(Kind::Bool, "yes"), "expected True or False, found yes");
        assert_eq!(refusal(Kind::Choice(&["a", "b"]), "c"), "expected a or b, found c");
        assert_eq!(refusal(Kind::Texts, "[1]"), "expected a list, such as [\"a\", \"b\"], found [1]");
        // A value is one value: no second key comes in with it.
        assert!(Kind::Any.read("1\ny = 2").is_err() && Kind::Any.read("{").is_err());
    }
}
