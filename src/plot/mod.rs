//! Curves on panels, and the small change of the pages they stand on: numbers, texts and pictures as HTML takes them.
//!
//! Invariant: what is drawn stands alone (no font, script or picture from elsewhere), and every text in it is escaped.
//!
//! - [`panel`]: a place on a picture where numbers have a height

pub mod panel;

/// What is larger counts as not finite, so that squares and sums stay finite.
const MAX_VALUE: f64 = 1e100;

/// A number that can be drawn and summed.
pub fn usable(value: f64) -> bool {
    value.abs() <= MAX_VALUE
}

/// Three digits that count: `0.0123`, `1.23`, `123`, `1.2e6`.
pub fn number(value: f64) -> String {
    let size = value.abs();
    if !value.is_finite() {
        return "–".to_owned();
    }
    if size == 0.0 {
        return "0".to_owned();
    }
    if !(1e-4..1e5).contains(&size) {
        return format!("{value:.1e}");
    }
    let digits = (2 - size.log10().floor() as i32).clamp(0, 6) as usize;
    format!("{value:.digits$}")
}

/// As [`number`], without zeros that say nothing: `0.8`, `12`, `1e6`.
pub fn brief(value: f64) -> String {
    let text = number(value);
    let (digits, power) = text.split_at(text.find('e').unwrap_or(text.len()));
    if !digits.contains('.') {
        return text;
    }
    format!("{}{power}", digits.trim_end_matches('0').trim_end_matches('.'))
}

/// A share as a percentage: `3.4 %`.
pub fn percent(share: Option<f64>) -> String {
    match share {
        None => "–".to_owned(),
        Some(share) if share.abs() >= 0.1 => format!("{:.0} %", share * 100.0),
        Some(share) => format!("{:.1} %", share * 100.0),
    }
}

/// A count with its thousands apart, by a narrow space that does not break: `3 238 048 256`.
pub fn count(value: u64) -> String {
    let digits = value.to_string();
    let mut out = String::with_capacity(digits.len() * 2);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push('\u{202f}');
        }
        out.push(digit);
    }
    out
}

/// A text as XML and HTML take it, in elements and in attributes. Characters that XML forbids are replaced.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            '\'' => out += "&#39;",
            '\t' | '\n' | '\r' => out.push(c),
            '\0'..='\x1f' | '\x7f' | '\u{fffe}' | '\u{ffff}' => out.push('\u{fffd}'),
            _ => out.push(c),
        }
    }
    out
}

/// RFC 4648, with padding.
pub fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let bits = (0..3).fold(0, |bits, i| (bits << 8) | u32::from(three.get(i).copied().unwrap_or(0)));
        for i in 0..4 {
            let letter = LETTERS[(bits >> (18 - 6 * i)) as usize & 63];
            out.push(if i <= three.len() { char::from(letter) } else { '=' });
        }
    }
    out
}

/// A PNG of `[height, width]` RGB bytes, row by row.
///
/// # Errors
/// No pixel; not three bytes for each.
pub fn png([height, width]: [usize; 2], pixels: &[u8]) -> Result<Vec<u8>, png::EncodingError> {
    let side = |pixels: usize| u32::try_from(pixels).unwrap_or(u32::MAX);
    let mut bytes = vec![];
    let mut encoder = png::Encoder::new(&mut bytes, side(width), side(height));
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.write_header()?.write_image_data(pixels)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_the_rfc() {
        let known = ["", "Zg==", "Zm8=", "Zm9v", "Zm9vYg==", "Zm9vYmE=", "Zm9vYmFy"];
        for (length, text) in known.iter().enumerate() {
            assert_eq!(base64(&b"foobar"[..length]), *text);
        }
        assert_eq!(base64(&[0xfb, 0xff]), "+/8=");
    }

    #[test]
    fn numbers_are_as_long_as_they_count() {
        let spelt = [0.0, 0.012_345, 1.2345, -12.345, 123.45, 99_999.0, 1e5, 1e-5, f64::NAN].map(number);
        assert_eq!(spelt, ["0", "0.0123", "1.23", "-12.3", "123", "99999", "1.0e5", "1.0e-5", "–"]);
        assert_eq!([0.8, 100.0, 1e6, 0.012_345, 2.0, -0.05].map(brief), ["0.8", "100", "1e6", "0.0123", "2", "-0.05"]);
        assert_eq!([Some(0.0341), Some(0.5), None].map(percent), ["3.4 %", "50 %", "–"]);
        assert_eq!([0, 999, 3_238_048_256].map(count), ["0", "999", "3\u{202f}238\u{202f}048\u{202f}256"]);
    }

    #[test]
    fn a_picture_without_pixels_or_of_another_size_is_refused() {
        assert!(png([0, 4], &[]).is_err());
        assert!(png([2, 2], &[0; 11]).is_err());
        assert!(png([2, 2], &[0; 12]).is_ok_and(|bytes| bytes.starts_with(b"\x89PNG")));
    }
}
