//! A websocket client of the standard library alone: enough to be a good client of a policy server, and every kind of bad one.
//!
//! It is not the toolkit's own client: what measures a server shares no code with it. Frames are masked with one fixed key;
//! RFC 6455 wants one from chance, against proxies that stand between, and nothing stands on the loopback.
//!
//! - [`message`]: MessagePack as openpi's client writes it and reads it
//! - [`aloha`]: what an ALOHA sends, right and wrong
//! - [`server`]: a server as a child, and its vital signs

pub(crate) mod aloha;
pub(crate) mod message;
pub(crate) mod server;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

/// Kinds of frames.
pub(crate) const TEXT: u8 = 1;
pub(crate) const BINARY: u8 = 2;
pub(crate) const CLOSE: u8 = 8;
pub(crate) const PING: u8 = 9;
pub(crate) const PONG: u8 = 10;
/// "Internal server error", as openpi's server closes after a refusal.
pub(crate) const INTERNAL: u16 = 1011;

/// Last frame of its message.
const FINAL: u8 = 0x80;
const MASKED: u8 = 0x80;
const MASK: [u8; 4] = [0x37, 0xFA, 0x21, 0x3D];
/// The example of RFC 6455, section 1.3: any 16 bytes will do.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
/// More than any answer has.
const MAX_FRAME_BYTES: u64 = 64 << 20;
const MAX_HEAD_BYTES: usize = 64 << 10;

/// An open websocket.
#[derive(Debug)]
pub(crate) struct Socket {
    pub(crate) stream: TcpStream,
    /// The first message: what every client is told.
    pub(crate) metadata: Vec<u8>,
}

/// What came.
#[derive(Debug, PartialEq)]
pub(crate) enum Event {
    Binary(Vec<u8>),
    Text(String),
    /// The other side closes, and why.
    Close(u16, String),
    Pong,
}

/// A plain connection; nothing takes longer than `patience`.
pub(crate) fn connect(address: SocketAddr, patience: Duration) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, patience).context("cannot connect")?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    Ok(stream)
}

/// What a client says first.
pub(crate) fn handshake() -> String {
    format!(
        "GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: {KEY}\r\n\
         Sec-WebSocket-Version: 13\r\n\r\n"
    )
}

/// The head of an HTTP answer, up to its empty line.
pub(crate) fn head(stream: &mut impl Read) -> Result<String> {
    let (mut head, mut byte) = (vec![], [0]);
    while !head.ends_with(b"\r\n\r\n") {
        ensure!(head.len() < MAX_HEAD_BYTES, "a head without an end");
        stream.read_exact(&mut byte).context("no answer")?;
        head.push(byte[0]);
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

/// The body of a page; the status must be 200.
pub(crate) fn page(address: SocketAddr, path: &str, patience: Duration) -> Result<String> {
    let mut stream = connect(address, patience)?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.take(MAX_FRAME_BYTES).read_to_string(&mut text)?;
    let (head, body) = text.split_once("\r\n\r\n").context("half an answer")?;
    ensure!(head.starts_with("HTTP/1.1 200"), "{path}: {}", head.lines().next().unwrap_or_default());
    Ok(body.to_owned())
}

/// One frame as a client sends it: final, masked.
pub(crate) fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    frame_with(FINAL | kind, Some(MASK), payload)
}

/// The first frame of a message that goes on.
pub(crate) fn beginning(kind: u8, payload: &[u8]) -> Vec<u8> {
    frame_with(kind, Some(MASK), payload)
}

/// A frame as only a server may send it.
pub(crate) fn unmasked(kind: u8, payload: &[u8]) -> Vec<u8> {
    frame_with(FINAL | kind, None, payload)
}

/// The head of a frame of so many bytes, none of which follow.
pub(crate) fn announced(kind: u8, len: u64) -> Vec<u8> {
    let mut bytes = vec![FINAL | kind, MASKED | 127];
    bytes.extend(len.to_be_bytes());
    bytes.extend(MASK);
    bytes
}

fn frame_with(first: u8, mask: Option<[u8; 4]>, payload: &[u8]) -> Vec<u8> {
    let masked = if mask.is_some() { MASKED } else { 0 };
    let mut bytes = vec![first];
    match (u8::try_from(payload.len()), u16::try_from(payload.len())) {
        (Ok(len), _) if len < 126 => bytes.push(masked | len),
        (_, Ok(len)) => {
            bytes.push(masked | 126);
            bytes.extend(len.to_be_bytes());
        }
        _ => {
            bytes.push(masked | 127);
            bytes.extend((payload.len() as u64).to_be_bytes());
        }
    }
    match mask {
        Some(mask) => {
            bytes.extend(mask);
            bytes.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        }
        None => bytes.extend(payload),
    }
    bytes
}

/// The next frame of a stream: its kind and what it holds. Messages in parts are not known to any policy server.
pub(crate) fn read_frame(stream: &mut impl Read) -> Result<(u8, Vec<u8>)> {
    let mut two = [0; 2];
    stream.read_exact(&mut two).context("no frame")?;
    ensure!(two[0] & FINAL != 0 && two[1] & MASKED == 0, "a frame that no policy server sends: {two:02x?}");
    let len = match two[1] {
        126 => u64::from(u16::from_be_bytes(read(stream)?)),
        127 => u64::from_be_bytes(read(stream)?),
        len => u64::from(len),
    };
    ensure!(len <= MAX_FRAME_BYTES, "a frame of {len} bytes");
    let mut payload = vec![];
    stream.take(len).read_to_end(&mut payload)?;
    ensure!(payload.len() as u64 == len, "half a frame");
    Ok((two[0] & 0x0F, payload))
}

fn read<const N: usize>(stream: &mut impl Read) -> Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes).context("half a frame")?;
    Ok(bytes)
}

impl Socket {
    /// Opens one and reads the metadata.
    pub(crate) fn open(address: SocketAddr, patience: Duration) -> Result<Self> {
        let mut stream = connect(address, patience)?;
        stream.write_all(handshake().as_bytes())?;
        let answer = head(&mut stream)?;
        ensure!(answer.starts_with("HTTP/1.1 101"), "{}", answer.lines().next().unwrap_or_default());
        let mut socket = Self { stream, metadata: vec![] };
        match socket.next()? {
            Event::Binary(metadata) => socket.metadata = metadata,
            other => bail!("not the metadata first: {other:?}"),
        }
        Ok(socket)
    }

    /// A whole frame, as [`frame`] made it.
    pub(crate) fn send(&mut self, frame: &[u8]) -> Result<()> {
        self.stream.write_all(frame).context("cannot send")
    }

    /// The next thing that is said; pings are answered.
    pub(crate) fn next(&mut self) -> Result<Event> {
        loop {
            let (kind, payload) = read_frame(&mut self.stream)?;
            return Ok(match kind {
                BINARY => Event::Binary(payload),
                TEXT => Event::Text(String::from_utf8(payload).context("text that is no text")?),
                CLOSE => {
                    let code = payload.first_chunk().map_or(0, |code| u16::from_be_bytes(*code));
                    Event::Close(code, String::from_utf8_lossy(payload.get(2..).unwrap_or_default()).into_owned())
                }
                PONG => Event::Pong,
                PING => {
                    self.send(&frame(PONG, &payload))?;
                    continue;
                }
                other => bail!("a frame of kind {other}"),
            });
        }
    }

    /// Says goodbye and hears it.
    pub(crate) fn close(mut self) -> Result<()> {
        self.send(&frame(CLOSE, &1000_u16.to_be_bytes()))?;
        while !matches!(self.next()?, Event::Close(..)) {}
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_has_the_length_that_fits_and_is_masked() {
        // RFC 6455, section 5.7: a masked "Hello".
        assert_eq!(frame(TEXT, b"Hello"), [0x81, 0x85, 0x37, 0xFA, 0x21, 0x3D, 0x7F, 0x9F, 0x4D, 0x51, 0x58]);
        assert_eq!(frame(BINARY, &[0; 126])[..4], [0x82, 0xFE, 0, 126]);
        assert_eq!(frame(BINARY, &[0; 65536])[..10], [0x82, 0xFF, 0, 0, 0, 0, 0, 1, 0, 0]);
        assert_eq!(unmasked(TEXT, b"Hello"), [0x81, 0x05, 0x48, 0x65, 0x6C, 0x6C, 0x6F]);
        assert_eq!(beginning(TEXT, b"")[..2], [0x01, 0x80]);
    }

    #[test]
    fn a_servers_frames_are_read_and_half_ones_refused() {
        for len in [0, 5, 125, 126, 65_535, 65_536] {
            let bytes = unmasked(BINARY, &vec![7; len]);
            assert_eq!(read_frame(&mut &bytes[..]).unwrap(), (BINARY, vec![7; len]));
            assert!(read_frame(&mut &bytes[..bytes.len() - 1]).is_err());
        }
        assert!(read_frame(&mut &frame(BINARY, b"masked")[..]).is_err());
        let mut huge = announced(BINARY, u64::MAX);
        huge[1] = 127;
        assert!(read_frame(&mut &huge[..]).unwrap_err().to_string().contains("18446744073709551615 bytes"));
        assert!(head(&mut &b"HTTP/1.1 200 OK\r\n\r\nOK\n"[..]).unwrap().ends_with("\r\n\r\n"));
        assert!(head(&mut &b"HTTP/1.1 200 OK\r\n"[..]).is_err());
    }
}
