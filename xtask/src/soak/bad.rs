//! Clients that do what no client should: each kind with what a server must do about it.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::procedural::mix;
use crate::wire::aloha::{self, Asked};
use crate::wire::{
    BINARY, CLOSE, Event, INTERNAL, PING, Socket, TEXT, announced, beginning, connect, frame, handshake, head, unmasked,
};

/// Connections that say nothing more and are kept open all the same.
const HELD: usize = 24;
/// A head that no server should read to its end.
const LONG_HEAD_BYTES: usize = 1 << 20;

/// What all of them need.
#[derive(Debug)]
pub(super) struct Ground {
    address: SocketAddr,
    patience: Duration,
    good: Vec<u8>,
    /// What is refused, and by which name.
    refused: Vec<(Vec<u8>, &'static str)>,
    held: Mutex<VecDeque<TcpStream>>,
}

/// A kind: does it, and fails if the server does not do what it must.
type Kind = fn(&Ground, u64) -> Result<()>;

pub(super) const KINDS: [(&str, Kind); 18] = [
    ("bytes that are no HTTP", garbage),
    ("HTTP that is no websocket", no_websocket),
    ("a head without an end", long_head),
    ("half a handshake, then silence", half_handshake),
    ("a handshake, then silence", silence),
    ("half a frame, then silence", half_frame_held),
    ("a message that never ends", never_final),
    ("a frame of a terabyte, announced", huge),
    ("an observation that is wrong", observation),
    ("bytes that are no message", no_message),
    ("a message that is cut off", cut),
    ("a text frame", text),
    ("a nest without an end", nest),
    ("an unmasked frame", no_mask),
    ("killed within a frame", killed_in_frame),
    ("killed while the model runs", killed_in_inference),
    ("deaf from the question on", half_open),
    ("a flood of pings", pings),
];

impl Ground {
    pub(super) fn new(address: SocketAddr, patience: Duration) -> Self {
        let wrong = [
            (Asked::WithoutCamera, "cam_high"),
            (Asked::NotANumber, "state"),
            (Asked::ShortState, "state"),
            (Asked::Words, "state"),
            (Asked::ShortPicture, "cam_"),
            (Asked::Objects, "state"),
        ];
        let refused = wrong.map(|(asked, name)| (frame(BINARY, &aloha::message(1, asked)), name)).to_vec();
        let good = frame(BINARY, &aloha::message(1, Asked::Plainly));
        Self { address, patience, good, refused, held: Mutex::default() }
    }

    /// The kind whose turn it is.
    pub(super) fn be(&self, turn: u64) -> Result<()> {
        let (name, kind) = KINDS[turn as usize % KINDS.len()];
        kind(self, turn).context(name)
    }

    fn open(&self) -> Result<Socket> {
        Socket::open(self.address, self.patience)
    }

    fn connect(&self) -> Result<TcpStream> {
        connect(self.address, self.patience)
    }

    /// Kept open, until others have taken its place.
    fn hold(&self, stream: TcpStream) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.push_back(stream);
        if held.len() > HELD {
            held.pop_front();
        }
    }
}

/// Reads until the server lets go. A reset is a way to let go; patience that ends is none.
fn let_go(mut stream: &TcpStream) -> Result<()> {
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {
                bail!("the connection stays open")
            }
            Err(_) => return Ok(()),
        }
    }
}

/// A text that names what is wrong, then the close that openpi's clients know.
fn refused(mut socket: Socket, frame: &[u8], name: &str) -> Result<()> {
    socket.send(frame)?;
    match socket.next()? {
        Event::Text(words) => ensure!(words.contains(name), "it is not named: {words}"),
        other => bail!("not refused: {other:?}"),
    }
    match socket.next()? {
        Event::Close(INTERNAL, _) => {}
        other => bail!("not closed: {other:?}"),
    }
    let _ = socket.send(&crate::wire::frame(CLOSE, &INTERNAL.to_be_bytes()));
    let_go(&socket.stream)
}

fn garbage(ground: &Ground, turn: u64) -> Result<()> {
    let mut stream = ground.connect()?;
    let bytes: Vec<u8> = (0..1 + mix(turn) % 512).flat_map(|i| mix(turn ^ i << 32).to_le_bytes()).collect();
    // The server may have let go already.
    let _ = stream.write_all(&bytes).and_then(|()| stream.shutdown(Shutdown::Write));
    let_go(&stream)
}

fn no_websocket(ground: &Ground, turn: u64) -> Result<()> {
    let mut stream = ground.connect()?;
    let lines = ["GET / HTTP/1.1", "POST /infer HTTP/1.1", "BREW /pot HTTP/1.1", "GET /../../etc/passwd HTTP/1.1"];
    write!(stream, "{}\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n", lines[turn as usize % lines.len()])?;
    let answer = head(&mut stream)?;
    ensure!(answer.starts_with("HTTP/1.1 4"), "{}", answer.lines().next().unwrap_or_default());
    Ok(())
}

fn long_head(ground: &Ground, _: u64) -> Result<()> {
    let mut stream = ground.connect()?;
    let _ = write!(stream, "GET / HTTP/1.1\r\nX-Long: ").and_then(|()| stream.write_all(&vec![b'a'; LONG_HEAD_BYTES]));
    let _ = stream.shutdown(Shutdown::Write);
    let_go(&stream)
}

fn half_handshake(ground: &Ground, _: u64) -> Result<()> {
    let mut stream = ground.connect()?;
    let words = handshake();
    stream.write_all(&words.as_bytes()[..words.len() / 2])?;
    ground.hold(stream);
    Ok(())
}

fn silence(ground: &Ground, _: u64) -> Result<()> {
    ground.hold(ground.open()?.stream);
    Ok(())
}

fn half_frame_held(ground: &Ground, _: u64) -> Result<()> {
    let mut socket = ground.open()?;
    socket.send(&ground.good[..ground.good.len() / 2])?;
    ground.hold(socket.stream);
    Ok(())
}

fn never_final(ground: &Ground, _: u64) -> Result<()> {
    let mut socket = ground.open()?;
    for _ in 0..3 {
        // The second one is a beginning within a message: not even that is allowed.
        if socket.send(&beginning(BINARY, &[0x81; 10_000])).is_err() {
            break;
        }
    }
    ground.hold(socket.stream);
    Ok(())
}

fn huge(ground: &Ground, _: u64) -> Result<()> {
    let mut socket = ground.open()?;
    socket.send(&announced(BINARY, 1 << 40))?;
    let _ = socket.send(&[7; 1 << 16]);
    let_go(&socket.stream)
}

fn observation(ground: &Ground, turn: u64) -> Result<()> {
    let (frame, name) = &ground.refused[mix(turn) as usize % ground.refused.len()];
    refused(ground.open()?, frame, name)
}

fn no_message(ground: &Ground, turn: u64) -> Result<()> {
    // 0xC1 is the one byte that MessagePack never uses.
    let bytes: Vec<u8> = [0xC1].into_iter().chain((0..turn % 100).map(|i| mix(turn ^ i) as u8)).collect();
    refused(ground.open()?, &frame(BINARY, &bytes), "")
}

fn cut(ground: &Ground, turn: u64) -> Result<()> {
    let whole = aloha::message(1, Asked::Plainly);
    let len = mix(turn) as usize % whole.len();
    refused(ground.open()?, &frame(BINARY, &whole[..len]), "")
}

fn text(ground: &Ground, _: u64) -> Result<()> {
    refused(ground.open()?, &frame(TEXT, b"{\"state\": []}"), "")
}

fn nest(ground: &Ground, turn: u64) -> Result<()> {
    let bytes = if turn.is_multiple_of(2) { vec![0x91; 200_000] } else { vec![0xDD, 0xFF, 0xFF, 0xFF, 0xFF] };
    refused(ground.open()?, &frame(BINARY, &bytes), "")
}

fn no_mask(ground: &Ground, _: u64) -> Result<()> {
    let mut socket = ground.open()?;
    socket.send(&unmasked(BINARY, b"\x80"))?;
    let_go(&socket.stream)
}

fn killed_in_frame(ground: &Ground, turn: u64) -> Result<()> {
    let mut socket = ground.open()?;
    socket.send(&ground.good[..mix(turn) as usize % ground.good.len()])
}

fn killed_in_inference(ground: &Ground, _: u64) -> Result<()> {
    let mut socket = ground.open()?;
    socket.send(&ground.good)
}

fn half_open(ground: &Ground, _: u64) -> Result<()> {
    let mut socket = ground.open()?;
    socket.send(&ground.good)?;
    socket.stream.shutdown(Shutdown::Write)?;
    let_go(&socket.stream)
}

fn pings(ground: &Ground, _: u64) -> Result<()> {
    const PINGS: usize = 50;
    let mut socket = ground.open()?;
    for _ in 0..PINGS {
        socket.send(&frame(PING, b"still there?"))?;
    }
    for _ in 0..PINGS {
        ensure!(socket.next()? == Event::Pong, "a ping without its pong");
    }
    socket.close()
}
