//! The header of a `.npy` member: a Python dict literal behind a magic.
//!
//! Source: numpy's format description, `numpy/lib/format.py` (versions 1.0, 2.0, 3.0). The literal is parsed, never evaluated.
//! Invariant: the parser looks at each byte once, holds at most [`MAX_HEADER`] bytes, and accepts exactly the three members numpy writes.

use std::io::Read;

use crate::Order;
use crate::dtype::Dtype;
use crate::zarr::MAX_RANK;

/// Bytes of a header (numpy itself refuses literals above 10 000 by default).
const MAX_HEADER: u32 = 1 << 16;
const MAGIC: &[u8] = b"\x93NUMPY";

/// What a header says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) dtype: Dtype,
    pub(crate) big_endian: bool,
    pub(crate) order: Order,
    pub(crate) shape: Vec<u64>,
    /// Bytes before the data.
    pub(crate) length: u64,
}

/// Reads a header; the reader then stands at the first element.
pub(crate) fn read_header(reader: &mut dyn Read) -> Result<Header, String> {
    let mut start = [0u8; 8];
    reader.read_exact(&mut start).map_err(|e| format!("no npy header: {e}"))?;
    let Some([major, _minor]) = start.strip_prefix(MAGIC) else {
        return Err(format!("not an npy file: expected the magic \\x93NUMPY, found {}", start.escape_ascii()));
    };
    let (literal_len, before) = match major {
        1 => {
            let mut length = [0u8; 2];
            reader.read_exact(&mut length).map_err(|e| format!("npy header: {e}"))?;
            (u32::from(u16::from_le_bytes(length)), 10u64)
        }
        2 | 3 => {
            let mut length = [0u8; 4];
            reader.read_exact(&mut length).map_err(|e| format!("npy header: {e}"))?;
            (u32::from_le_bytes(length), 12)
        }
        other => return Err(format!("npy version {other}: 1, 2 and 3 are known")),
    };
    if literal_len > MAX_HEADER {
        return Err(format!("npy header of {literal_len} bytes, at most {MAX_HEADER} are accepted"));
    }
    let mut literal = Vec::new();
    reader.take(u64::from(literal_len)).read_to_end(&mut literal).map_err(|e| format!("npy header: {e}"))?;
    let text = std::str::from_utf8(&literal).map_err(|_| "npy header: not text".to_owned())?;
    if literal.len() != usize::try_from(literal_len).unwrap_or(usize::MAX) {
        return Err(format!("npy header: expected {literal_len} bytes, found {}", literal.len()));
    }
    let (descr, fortran, shape) = Literal { rest: text }.header().map_err(|e| format!("npy header: {e}"))?;
    let (dtype, big_endian) = from_descr(&descr)?;
    Ok(Header {
        dtype,
        big_endian,
        order: if fortran { Order::F } else { Order::C },
        shape,
        length: before.saturating_add(u64::from(literal_len)),
    })
}

fn from_descr(descr: &str) -> Result<(Dtype, bool), String> {
    match descr {
        // numpy does not know bfloat16 and stores it as two nameless bytes; big_vision's checkpoints rely on that.
        "|V2" | "<V2" => Ok((Dtype::Bf16, false)),
        "|O" => Err("dtype \"|O\": pickled Python objects are not read".to_owned()),
        // The bare names are zarr's spelling, never numpy's.
        _ if descr.starts_with(['<', '>', '|']) => {
            Dtype::from_zarr2(descr).ok_or_else(|| format!("dtype {descr:?} is not supported"))
        }
        _ => Err(format!("dtype {descr:?} is not supported")),
    }
}

/// What is left of the literal.
struct Literal<'a> {
    rest: &'a str,
}

impl<'a> Literal<'a> {
    fn skip(&mut self) {
        self.rest = self.rest.trim_start_matches([' ', '\t', '\n', '\r']);
    }

    fn eat(&mut self, token: &str) -> bool {
        self.skip();
        match self.rest.strip_prefix(token) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn need(&mut self, token: &str) -> Result<(), String> {
        if self.eat(token) { Ok(()) } else { Err(format!("expected {token:?}, found {:?}", self.glimpse())) }
    }

    fn glimpse(&self) -> String {
        self.rest.chars().take(20).collect()
    }

    fn text(&mut self) -> Result<&'a str, String> {
        self.skip();
        let quote = self.rest.chars().next().filter(|c| matches!(c, '\'' | '"'));
        let Some((text, rest)) = quote.and_then(|q| self.rest.get(1..)?.split_once(q)) else {
            return Err(format!("expected a string, found {:?} (structured types are not supported)", self.glimpse()));
        };
        self.rest = rest;
        Ok(text)
    }

    fn flag(&mut self) -> Result<bool, String> {
        if self.eat("True") {
            return Ok(true);
        }
        self.need("False").map(|()| false)
    }

    fn sizes(&mut self) -> Result<Vec<u64>, String> {
        self.need("(")?;
        let mut sizes = Vec::new();
        while !self.eat(")") {
            self.skip();
            let end = self.rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(self.rest.len());
            let (digits, rest) = self.rest.split_at_checked(end).unwrap_or(("", self.rest));
            let size: u64 =
                digits.parse().map_err(|_| format!("shape: expected a size, found {:?}", self.glimpse()))?;
            // Python 2 wrote long integers with an L.
            self.rest = rest.strip_prefix('L').unwrap_or(rest);
            sizes.push(size);
            if sizes.len() > MAX_RANK {
                return Err(format!("shape: more than {MAX_RANK} axes"));
            }
            if !self.eat(",") {
                self.need(")")?;
                break;
            }
        }
        Ok(sizes)
    }

    fn header(mut self) -> Result<(String, bool, Vec<u64>), String> {
        let (mut descr, mut fortran, mut shape) = (None, None, None);
        self.need("{")?;
        while !self.eat("}") {
            let key = self.text()?;
            self.need(":")?;
            let doubled = match key {
                "descr" => descr.replace(self.text()?.to_owned()).is_some(),
                "fortran_order" => fortran.replace(self.flag()?).is_some(),
                "shape" => shape.replace(self.sizes()?).is_some(),
                other => return Err(format!("unknown member {other:?}")),
            };
            if doubled {
                return Err(format!("member {key:?} twice"));
            }
            if !self.eat(",") {
                self.need("}")?;
                break;
            }
        }
        self.skip();
        if !self.rest.is_empty() {
            return Err(format!("something behind the header: {:?}", self.glimpse()));
        }
        match (descr, fortran, shape) {
            (Some(descr), Some(fortran), Some(shape)) => Ok((descr, fortran, shape)),
            (descr, fortran, _) => {
                let missing = if descr.is_none() {
                    "descr"
                } else if fortran.is_none() {
                    "fortran_order"
                } else {
                    "shape"
                };
                Err(format!("no member {missing:?}"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn npy(version: u8, literal: &str) -> Vec<u8> {
        let mut out = [MAGIC, &[version, 0]].concat();
        match version {
            1 => out.extend_from_slice(&(literal.len() as u16).to_le_bytes()),
            _ => out.extend_from_slice(&(literal.len() as u32).to_le_bytes()),
        }
        [out.as_slice(), literal.as_bytes()].concat()
    }

    fn parse(literal: &str) -> Result<Header, String> {
        read_header(&mut npy(1, literal).as_slice())
    }

    #[test]
    fn numpys_own_headers_are_read_in_every_version() {
        let literal = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }      \n";
        for version in 1..=3 {
            let bytes = npy(version, literal);
            let header = read_header(&mut bytes.as_slice()).unwrap();
            assert_eq!(
                (header.dtype, header.order, header.shape.as_slice()),
                (Dtype::F32, Order::C, [2, 3].as_slice())
            );
            assert_eq!(header.length, bytes.len() as u64);
        }
    }

    #[test]
    fn other_spellings_are_read() {
        let header = parse("{\"shape\": (3L,), 'fortran_order': True, 'descr': '>i8'}").unwrap();
        assert_eq!(
            (header.dtype, header.big_endian, header.order, header.shape),
            (Dtype::I64, true, Order::F, vec![3])
        );
        assert_eq!(parse("{'descr': '|V2', 'fortran_order': False, 'shape': ()}").unwrap().dtype, Dtype::Bf16);
    }

    #[test]
    fn forged_headers_are_refused() {
        let ok = "'fortran_order': False, 'shape': (1,)";
        for (literal, with) in [
            (format!("{{'descr': '|O', {ok}}}"), "pickled"),
            (format!("{{'descr': 'bfloat16', {ok}}}"), "not supported"),
            (format!("{{'descr': '<U4', {ok}}}"), "not supported"),
            (format!("{{'descr': [('a', '<f4')], {ok}}}"), "structured"),
            (format!("{{{ok}}}"), "no member \"descr\""),
            (format!("{{'descr': '<f4', 'descr': '<f4', {ok}}}"), "twice"),
            (format!("{{'descr': '<f4', {ok}, 'x': 1}}"), "unknown member"),
            (format!("{{'descr': '<f4', {ok}}} x"), "behind"),
            ("{'descr': '<f4', 'fortran_order': 0, 'shape': ()}".into(), "False"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}".into(), "size"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999,)}".into(), "size"),
            (format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({})}}", "1,".repeat(33)), "axes"),
            ("{'descr': '<f4".into(), "string"),
            ("".into(), "expected"),
        ] {
            let error = parse(&literal).unwrap_err();
            assert!(error.contains(with), "{literal}: {error}");
        }
        assert!(read_header(&mut npy(4, "{}").as_slice()).unwrap_err().contains("version 4"));
        assert!(read_header(&mut &b"PK\x03\x04 no numpy"[..]).unwrap_err().contains("magic"));
        let huge = [MAGIC, &[2, 0], &u32::MAX.to_le_bytes()].concat();
        assert!(read_header(&mut huge.as_slice()).unwrap_err().contains("at most"));
        assert!(read_header(&mut &npy(1, "{   }")[..12]).unwrap_err().contains("found 2"));
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "[{}()'\",: a-zA-Z0-9<>|é]{0,80}") {
            let _ = parse(&text);
        }
    }
}
