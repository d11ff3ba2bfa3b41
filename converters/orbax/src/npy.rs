//! The `.npy` format: a Python dict literal behind a magic, then the elements. Read as a file of its own ([`Npy`]) or as
//! a member of an npz; written by [`npy_bytes`].
//!
//! Source: numpy's format description, `numpy/lib/format.py` (versions 1.0, 2.0, 3.0). The literal is parsed, never evaluated.
//! Invariant: the parser looks at each byte once, holds at most [`MAX_HEADER`] bytes, and accepts exactly the three members numpy writes.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use crate::chunk::decoder;
use crate::dtype::Dtype;
use crate::error::{Error, Result as Checked};
use crate::zarr::{MAX_ARRAY_BYTES, MAX_RANK, product};
use crate::{ArrayInfo, Chunk, Order, Source};

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

/// A `.npy` file as a source of one array, which has the file's name.
#[derive(Debug)]
pub struct Npy {
    path: PathBuf,
    info: ArrayInfo,
    header: u64,
    data: u64,
    /// Bytes of the unit to turn around; 1 for little-endian data.
    unit: usize,
}

impl Npy {
    /// Opens the file and reads its header.
    ///
    /// # Errors
    /// What is no npy file, a pickled or structured array, a shape that does not fit the file's size.
    pub fn open(path: impl AsRef<Path>) -> Checked<Self> {
        let path = path.as_ref();
        let bad = |problem: String| Error::Document { file: path.display().to_string(), problem };
        let file = File::open(path).map_err(|e| Error::io(path, e))?;
        let found = file.metadata().map_err(|e| Error::io(path, e))?;
        if !found.is_file() {
            return Err(bad("not a regular file".to_owned()));
        }
        let header = read_header(&mut BufReader::new(file)).map_err(bad)?;
        let element = u64::try_from(header.dtype.size()).unwrap_or(u64::MAX);
        let data = product(&header.shape)
            .and_then(|n| n.checked_mul(element))
            .filter(|&bytes| bytes <= MAX_ARRAY_BYTES)
            .ok_or_else(|| bad(format!("shape {:?} of {} is too large", header.shape, header.dtype)))?;
        if header.length.checked_add(data) != Some(found.len()) {
            return Err(bad(format!(
                "shape {:?} of {} takes {} + {data} bytes, the file has {}",
                header.shape,
                header.dtype,
                header.length,
                found.len()
            )));
        }
        Ok(Npy {
            path: path.to_path_buf(),
            info: ArrayInfo {
                name: path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default(),
                // An empty array has no chunk; its sides stay at least 1.
                chunk_shape: header.shape.iter().map(|&n| n.max(1)).collect(),
                shape: header.shape,
                dtype: header.dtype,
                order: header.order,
            },
            header: header.length,
            data,
            unit: if header.big_endian { header.dtype.swap_unit() } else { 1 },
        })
    }
}

impl Source for Npy {
    fn arrays(&self) -> &[ArrayInfo] {
        std::slice::from_ref(&self.info)
    }

    fn chunk(&self, array: usize, chunk: u64) -> Checked<Chunk<'_>> {
        self.stored_len(array, chunk)?;
        let open = || {
            let mut file = File::open(&self.path)?;
            file.seek(SeekFrom::Start(self.header))?;
            decoder(Box::new(BufReader::new(file)), &[], self.unit, self.data, self.path.display().to_string())
        };
        open().map(Chunk::Stream).map_err(|e| Error::io(&self.path, e))
    }

    fn stored_len(&self, array: usize, chunk: u64) -> Checked<u64> {
        let (what, found) = if array == 0 { ("chunk", chunk) } else { ("array", u64::try_from(array).unwrap_or(0)) };
        if found == 0 && self.data > 0 {
            return Ok(self.data);
        }
        let count = u64::from(self.data > 0);
        Err(Error::OutOfRange { name: self.info.name.clone(), what, found, count })
    }
}

/// The bytes of a `.npy` file, as numpy writes it: version 1.0, the header padded to 64 bytes, little-endian C order.
///
/// # Errors
/// A type that numpy has no name for; `data` that is not `shape` of `dtype`.
pub fn npy_bytes(dtype: Dtype, shape: &[u64], data: &[u8]) -> Checked<Vec<u8>> {
    let unsupported = |what: String| Error::Unsupported { name: "npy".to_owned(), what };
    let descr = dtype.zarr2();
    if !descr.starts_with(['<', '|']) || shape.len() > MAX_RANK {
        return Err(unsupported(format!("{dtype} of rank {}", shape.len())));
    }
    let expected = product(shape).and_then(|n| n.checked_mul(u64::try_from(dtype.size()).ok()?));
    if expected != u64::try_from(data.len()).ok() {
        return Err(unsupported(format!("{} bytes as {shape:?} of {dtype}", data.len())));
    }
    let sizes: Vec<String> = shape.iter().map(|n| format!("{n}, ")).collect();
    let sizes = if sizes.len() == 1 { sizes.concat() } else { sizes.concat().trim_end_matches(", ").to_owned() };
    let mut literal = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({}), }}", sizes.trim_end());
    // Magic, version and length take ten bytes, the newline one.
    while literal.len().saturating_add(11) % 64 != 0 {
        literal.push(' ');
    }
    literal.push('\n');
    let length = u16::try_from(literal.len()).map_err(|_| unsupported("a header above 64 KiB".to_owned()))?;
    Ok([MAGIC, &[1, 0], &length.to_le_bytes(), literal.as_bytes(), data].concat())
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

    fn stored(bytes: &[u8]) -> Checked<(ArrayInfo, Vec<u8>)> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.npy");
        std::fs::write(&path, bytes).unwrap();
        let npy = Npy::open(&path)?;
        let data = crate::read_array(&npy, 0)?;
        Ok((npy.info.clone(), data))
    }

    #[test]
    fn what_is_written_is_read_back() {
        for shape in [&[][..], &[3], &[0], &[2, 3], &[1, 2, 2]] {
            let data: Vec<u8> = (0..shape.iter().product::<u64>() as u8 * 4).collect();
            let bytes = npy_bytes(Dtype::F32, shape, &data).unwrap();
            assert_eq!((bytes.len() - data.len()) % 64, 0);
            let (info, read) = stored(&bytes).unwrap();
            assert_eq!((info.shape.as_slice(), info.dtype, read), (shape, Dtype::F32, data));
        }
        // numpy's own bytes: numpy.save(f, numpy.zeros(3, "u1")).
        let mut expected = b"\x93NUMPY\x01\0v\0{'descr': '|u1', 'fortran_order': False, 'shape': (3,), }".to_vec();
        expected.resize(127, b' ');
        expected.extend([b'\n', 0, 0, 0]);
        assert_eq!(npy_bytes(Dtype::U8, &[3], &[0; 3]).unwrap(), expected);
        assert!(npy_bytes(Dtype::Bf16, &[1], &[0; 2]).is_err());
        assert!(npy_bytes(Dtype::U8, &[2], &[0; 3]).is_err());
    }

    #[test]
    fn foreign_order_and_endianness_become_ours() {
        let mut bytes = npy(1, "{'descr': '>i2', 'fortran_order': True, 'shape': (2, 3)}");
        bytes.extend([0, 0, 0, 3, 0, 1, 0, 4, 0, 2, 0, 5]);
        let (_, data) = stored(&bytes).unwrap();
        assert_eq!(data, [0, 0, 1, 0, 2, 0, 3, 0, 4, 0, 5, 0]);
    }

    #[test]
    fn a_file_of_another_size_is_refused() {
        let mut bytes = npy_bytes(Dtype::F32, &[2], &[0; 8]).unwrap();
        bytes.pop();
        assert!(stored(&bytes).unwrap_err().to_string().contains("the file has"));
        let forged = npy(1, "{'descr': '<f8', 'fortran_order': False, 'shape': (4294967296, 4294967296)}");
        assert!(stored(&forged).unwrap_err().to_string().contains("too large"));
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "[{}()'\",: a-zA-Z0-9<>|é]{0,80}") {
            let _ = parse(&text);
        }
    }
}
