//! The few opcodes of pickle with which numpy writes a dictionary of arrays, as a pile of nodes. Nothing is ever called.
//!
//! Source: CPython's `pickletools` (protocols 2 to 5) and what `ndarray.__reduce_ex__`, `dtype.__reduce__` and
//! `generic.__reduce__` of numpy 1.26 and 2.2 return. Invariants: an opcode makes one node at most and texts and bytes
//! are borrowed from the file, so that memory grows with the file; what a node refers to is an index, so that no file
//! makes us recurse; a global that is not in [`GLOBALS`] ends the reading.

#![deny(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::collections::HashMap;

use super::{RecordingFault as Fault, shown};
use crate::data::numpy::Dtype;

/// Opcodes at most: a recording has a few hundred, one with a picture as nested lists would have more.
pub(super) const MAX_OPCODES: usize = 1 << 20;

/// A node's place in the pile.
pub(super) type Id = usize;

/// What an opcode made.
#[derive(Debug)]
pub(super) enum Node<'a> {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(&'a str),
    Bytes(&'a [u8]),
    /// Bytes as protocol 2 writes them: a text whose characters are the bytes.
    Latin(&'a str),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Global(Global),
    Dtype(Dtype),
    /// An array before its state.
    Blank,
    /// All parts are nodes, looked at when the array is read.
    Array {
        shape: Id,
        dtype: Id,
        fortran: bool,
        data: Id,
    },
}

/// The only names that a recording may mention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Global {
    Reconstruct,
    Ndarray,
    Dtype,
    Scalar,
    FromBuffer,
    Encode,
    Bytes,
}

/// Module, name, and what stands for it. numpy 2 moved `core` to `_core`; protocol 2 has Python 2's name of `builtins`.
const GLOBALS: [(&str, &str, Global); 11] = [
    ("numpy.core.multiarray", "_reconstruct", Global::Reconstruct),
    ("numpy._core.multiarray", "_reconstruct", Global::Reconstruct),
    ("numpy", "ndarray", Global::Ndarray),
    ("numpy", "dtype", Global::Dtype),
    ("numpy.core.multiarray", "scalar", Global::Scalar),
    ("numpy._core.multiarray", "scalar", Global::Scalar),
    ("numpy.core.numeric", "_frombuffer", Global::FromBuffer),
    ("numpy._core.numeric", "_frombuffer", Global::FromBuffer),
    ("_codecs", "encode", Global::Encode),
    ("__builtin__", "bytes", Global::Bytes),
    ("builtins", "bytes", Global::Bytes),
];

/// All that a pickle made.
#[derive(Debug)]
pub(super) struct Pile<'a> {
    nodes: Vec<Node<'a>>,
    /// The object itself.
    pub(super) root: Id,
}

impl<'a> Pile<'a> {
    /// A node. Ids come from the pile itself, so there always is one.
    pub(super) fn get(&self, id: Id) -> &Node<'a> {
        self.nodes.get(id).unwrap_or(&Node::None)
    }
}

/// Reads the pickle that begins at `start` and ends the file.
pub(super) fn pile(file: &[u8], start: usize) -> Result<Pile<'_>, Fault> {
    let mut machine = Machine { file, at: start, ..Machine::default() };
    for _ in 0..MAX_OPCODES {
        let at = machine.at;
        let code = machine.byte()?;
        if code == b'.' {
            let root = machine.pop()?;
            if machine.at != file.len() {
                return Err(machine.malformed("bytes after the end of the pickle"));
            }
            return Ok(Pile { nodes: machine.nodes, root });
        }
        machine.opcode(code, at)?;
    }
    Err(Fault::Bounds { what: "opcodes", max: MAX_OPCODES as u64 })
}

#[derive(Debug, Default)]
struct Machine<'a> {
    file: &'a [u8],
    at: usize,
    nodes: Vec<Node<'a>>,
    stack: Vec<Id>,
    marks: Vec<usize>,
    memo: HashMap<u64, Id>,
}

impl<'a> Machine<'a> {
    fn opcode(&mut self, code: u8, at: usize) -> Result<(), Fault> {
        match code {
            // PROTO
            0x80 => match self.byte()? {
                2..=5 => Ok(()),
                _ => Err(self.malformed("a pickle protocol other than 2 to 5")),
            },
            // FRAME: a hint to the reader of a stream
            0x95 => self.size(8).map(|_| ()),
            // MARK
            b'(' => {
                self.marks.push(self.stack.len());
                Ok(())
            }
            b'N' => self.push(Node::None),
            0x88 => self.push(Node::Bool(true)),
            0x89 => self.push(Node::Bool(false)),
            // BININT, BININT1, BININT2, LONG1
            b'J' => {
                let value = i32::from_le_bytes(self.array()?);
                self.push(Node::Int(value.into()))
            }
            b'K' | b'M' => {
                let value = self.size(if code == b'K' { 1 } else { 2 })?;
                self.push(Node::Int(value.cast_signed()))
            }
            0x8a => self.long(),
            // BINFLOAT is the one that is big-endian.
            b'G' => {
                let value = f64::from_be_bytes(self.array()?);
                self.push(Node::Float(value))
            }
            // SHORT_BINUNICODE, BINUNICODE, BINUNICODE8
            0x8c => self.text(1),
            b'X' => self.text(4),
            0x8d => self.text(8),
            // SHORT_BINBYTES, BINBYTES, BINBYTES8, BYTEARRAY8
            b'C' => self.bytes(1),
            b'B' => self.bytes(4),
            0x8e | 0x96 => self.bytes(8),
            // EMPTY_TUPLE, TUPLE1, TUPLE2, TUPLE3, TUPLE
            b')' => self.push(Node::Tuple(vec![])),
            0x85..=0x87 => {
                let count = usize::from(code.saturating_sub(0x84));
                let from = self.floor(count)?;
                let items = self.stack.split_off(from);
                self.push(Node::Tuple(items))
            }
            b't' => {
                let items = self.since_mark()?;
                self.push(Node::Tuple(items))
            }
            b']' => self.push(Node::List(vec![])),
            b'}' => self.push(Node::Dict(vec![])),
            // APPEND, APPENDS, SETITEM, SETITEMS
            b'a' => {
                let item = self.pop()?;
                self.append(vec![item])
            }
            b'e' => {
                let items = self.since_mark()?;
                self.append(items)
            }
            b's' => {
                let from = self.floor(2)?;
                let pair = self.stack.split_off(from);
                self.set(&pair)
            }
            b'u' => {
                let pairs = self.since_mark()?;
                self.set(&pairs)
            }
            // GLOBAL, STACK_GLOBAL
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.global(module, name, at)
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                match (self.node(module), self.node(name)) {
                    (Node::Text(module), Node::Text(name)) => self.global(module, name, at),
                    _ => Err(self.malformed("a global without a name")),
                }
            }
            b'R' => self.reduce(),
            b'b' => self.build(),
            // BINPUT, LONG_BINPUT, MEMOIZE, BINGET, LONG_BINGET
            b'q' | b'r' => {
                let index = self.size(if code == b'q' { 1 } else { 4 })?;
                self.remember(index)
            }
            0x94 => {
                let index = self.memo.len() as u64;
                self.remember(index)
            }
            b'h' => self.recall(1),
            b'j' => self.recall(4),
            _ => Err(Fault::Opcode { at, code }),
        }
    }

    fn malformed(&self, what: &'static str) -> Fault {
        Fault::Malformed { at: self.at, what }
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], Fault> {
        let end = self.at.checked_add(count);
        let bytes = end.and_then(|end| self.file.get(self.at..end));
        let bytes = bytes.ok_or(Fault::Cut { at: self.at, wanted: count as u64 })?;
        self.at = self.at.saturating_add(count);
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let at = self.at;
        self.take(N)?.first_chunk().copied().ok_or(Fault::Cut { at, wanted: N as u64 })
    }

    fn byte(&mut self) -> Result<u8, Fault> {
        self.array().map(|[byte]| byte)
    }

    /// A whole number of so many bytes, little-endian.
    fn size(&mut self, bytes: usize) -> Result<u64, Fault> {
        let taken = self.take(bytes)?;
        Ok(taken.iter().rev().fold(0, |number, byte| (number << 8) | u64::from(*byte)))
    }

    /// Bytes after their number.
    fn counted(&mut self, size: usize) -> Result<&'a [u8], Fault> {
        let wanted = self.size(size)?;
        let count = usize::try_from(wanted).map_err(|_| Fault::Cut { at: self.at, wanted })?;
        self.take(count)
    }

    fn text(&mut self, size: usize) -> Result<(), Fault> {
        let bytes = self.counted(size)?;
        let text = std::str::from_utf8(bytes).map_err(|_| self.malformed("a text that is not UTF-8"))?;
        self.push(Node::Text(text))
    }

    fn bytes(&mut self, size: usize) -> Result<(), Fault> {
        let bytes = self.counted(size)?;
        self.push(Node::Bytes(bytes))
    }

    /// Little-endian, two's complement, as few bytes as it takes; none for zero.
    fn long(&mut self) -> Result<(), Fault> {
        let bytes = self.counted(1)?;
        if bytes.len() > size_of::<i64>() {
            return Err(self.malformed("a whole number of more than 64 bits"));
        }
        let fill = if bytes.last().is_some_and(|byte| *byte >= 0x80) { 0xff } else { 0 };
        let mut all = [fill; size_of::<i64>()];
        for (to, from) in all.iter_mut().zip(bytes) {
            *to = *from;
        }
        self.push(Node::Int(i64::from_le_bytes(all)))
    }

    /// Up to the end of the line, without it.
    fn line(&mut self) -> Result<&'a str, Fault> {
        let rest = self.file.get(self.at..).unwrap_or_default();
        let Some(length) = rest.iter().take(256).position(|byte| *byte == b'\n') else {
            return Err(self.malformed("a global whose name does not end"));
        };
        let line = self.take(length)?;
        self.take(1)?;
        std::str::from_utf8(line).map_err(|_| self.malformed("a global whose name is not UTF-8"))
    }

    fn node(&self, id: Id) -> &Node<'a> {
        self.nodes.get(id).unwrap_or(&Node::None)
    }

    fn push(&mut self, node: Node<'a>) -> Result<(), Fault> {
        self.stack.push(self.nodes.len());
        self.nodes.push(node);
        Ok(())
    }

    /// Where the uppermost `count` begin. What lies under a mark is out of reach.
    fn floor(&self, count: usize) -> Result<usize, Fault> {
        let mark = self.marks.last().copied().unwrap_or(0);
        let from = self.stack.len().checked_sub(count).filter(|from| *from >= mark);
        from.ok_or_else(|| self.malformed("an empty stack"))
    }

    fn pop(&mut self) -> Result<Id, Fault> {
        self.floor(1)?;
        self.stack.pop().ok_or_else(|| self.malformed("an empty stack"))
    }

    fn top(&self) -> Result<Id, Fault> {
        self.floor(1)?;
        self.stack.last().copied().ok_or_else(|| self.malformed("an empty stack"))
    }

    fn since_mark(&mut self) -> Result<Vec<Id>, Fault> {
        let mark = self.marks.pop().ok_or_else(|| self.malformed("no mark"))?;
        // Nothing takes away what a mark stands on: `floor` sees to that.
        Ok(self.stack.split_off(mark.min(self.stack.len())))
    }

    fn append(&mut self, mut items: Vec<Id>) -> Result<(), Fault> {
        let list = self.top()?;
        match self.nodes.get_mut(list) {
            Some(Node::List(all)) => {
                all.append(&mut items);
                Ok(())
            }
            _ => Err(self.malformed("an item for something that is no list")),
        }
    }

    fn set(&mut self, flat: &[Id]) -> Result<(), Fault> {
        let (pairs, rest) = flat.as_chunks();
        let dict = self.top()?;
        match self.nodes.get_mut(dict) {
            Some(Node::Dict(all)) if rest.is_empty() => {
                all.extend(pairs.iter().map(|[key, value]| (*key, *value)));
                Ok(())
            }
            _ => Err(self.malformed("a key and a value for something that is no dictionary")),
        }
    }

    fn remember(&mut self, index: u64) -> Result<(), Fault> {
        let id = self.top()?;
        self.memo.insert(index, id);
        Ok(())
    }

    fn recall(&mut self, size: usize) -> Result<(), Fault> {
        let index = self.size(size)?;
        let id = self.memo.get(&index).copied();
        let id = id.ok_or_else(|| self.malformed("a reference to what was not written"))?;
        self.stack.push(id);
        Ok(())
    }

    fn global(&mut self, module: &str, name: &str, at: usize) -> Result<(), Fault> {
        let known = GLOBALS.iter().find(|(m, n, _)| (*m, *n) == (module, name));
        let (_, _, global) = known.ok_or_else(|| Fault::Global { at, name: shown(&format!("{module}.{name}")) })?;
        self.push(Node::Global(*global))
    }

    /// What numpy's functions would have made of their arguments, if it is one of numpy's own calls.
    fn reduce(&mut self) -> Result<(), Fault> {
        let (arguments, function) = (self.pop()?, self.pop()?);
        let (Node::Global(function), Node::Tuple(arguments)) = (self.node(function), self.node(arguments)) else {
            return Err(self.malformed("a call of something that is no function"));
        };
        let nodes = |i: usize| arguments.get(i).map(|id| self.node(*id));
        let made = match (function, arguments.as_slice()) {
            (Global::Reconstruct, [_, _, _]) if matches!(nodes(0), Some(Node::Global(Global::Ndarray))) => Node::Blank,
            (Global::Dtype, [_, _, _]) => match nodes(0) {
                Some(Node::Text(name)) => Node::Dtype(dtype(name)?),
                _ => return Err(self.malformed("a dtype without a name")),
            },
            (Global::Scalar, [dtype, data]) => {
                let (dtype, data) = (*dtype, *data);
                // A scalar has no axis: the shape of the empty tuple.
                self.nodes.push(Node::Tuple(vec![]));
                Node::Array { shape: self.nodes.len().saturating_sub(1), dtype, fortran: false, data }
            }
            (Global::FromBuffer, [data, dtype, shape, _]) => match nodes(3) {
                Some(Node::Text(order @ ("C" | "F"))) => {
                    Node::Array { shape: *shape, dtype: *dtype, fortran: *order == "F", data: *data }
                }
                _ => return Err(self.malformed("an array in neither C nor Fortran order")),
            },
            (Global::Encode, [_, _]) => match (nodes(0), nodes(1)) {
                (Some(Node::Text(text)), Some(Node::Text("latin1"))) => Node::Latin(text),
                _ => return Err(self.malformed("a text encoded other than in latin1")),
            },
            (Global::Bytes, []) => Node::Bytes(&[]),
            _ => return Err(self.malformed("a call that numpy does not write")),
        };
        self.push(made)
    }

    /// The state of an array or of a dtype.
    fn build(&mut self) -> Result<(), Fault> {
        let (state, object) = (self.pop()?, self.top()?);
        let Node::Tuple(state) = self.node(state) else { return Err(self.malformed("a state that is no tuple")) };
        let nodes: Vec<&Node> = state.iter().take(8).map(|id| self.node(*id)).collect();
        let made = match (self.node(object), state.as_slice(), nodes.as_slice()) {
            (Node::Blank, [_, shape, dtype, _, data], [Node::Int(1), _, _, Node::Bool(fortran), _]) => {
                Node::Array { shape: *shape, dtype: *dtype, fortran: *fortran, data: *data }
            }
            (
                Node::Dtype(dtype),
                [_, _, _, _, _, _, _, _],
                [Node::Int(3), Node::Text(order), Node::None, Node::None, Node::None, ..],
            ) => match *order {
                "<" | "|" => Node::Dtype(Dtype { big_endian: false, ..*dtype }),
                ">" => Node::Dtype(Dtype { big_endian: true, ..*dtype }),
                _ => return Err(self.malformed("an unknown order of bytes")),
            },
            _ => return Err(self.malformed("a state that numpy does not write")),
        };
        if let Some(node) = self.nodes.get_mut(object) {
            *node = made;
        }
        Ok(())
    }
}

/// `f8`, `U12`, `O8`.
fn dtype(name: &str) -> Result<Dtype, Fault> {
    Dtype::plain(name).ok_or_else(|| Fault::Dtype { name: shown(name) })
}
