//! Clients that ask as they should, and look at every byte of the actions they get.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::wire::aloha::{self, Asked};
use crate::wire::message::Value;
use crate::wire::{BINARY, Event, Socket, frame};

/// Different observations.
const SIGHTS: u64 = 8;
/// After how many requests the clients open a new connection; the first never does.
const HABITS: [u64; 4] = [u64::MAX, 100, 10, 1];
/// Lost requests of which the reason is kept.
const KEPT: usize = 8;

/// What is asked, and what must come back: noise is from a seed, so that it is the same each time.
#[derive(Debug)]
pub(super) struct Truth {
    pub(super) frames: Vec<Vec<u8>>,
    answers: Vec<Vec<u8>>,
}

/// What became of the requests.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) latencies_ms: Vec<f64>,
    pub(super) wrong: u64,
    pub(super) lost: u64,
    pub(super) reasons: Vec<String>,
}

impl Truth {
    /// Asks each question once, while nobody else asks.
    pub(super) fn learn(address: SocketAddr, patience: Duration) -> Result<Self> {
        let frames: Vec<_> =
            (0..SIGHTS).map(|sight| frame(BINARY, &aloha::message(sight, Asked::Seeded(sight)))).collect();
        let mut socket = Socket::open(address, patience)?;
        let answers = frames.iter().map(|frame| ask(&mut socket, frame)).collect::<Result<_>>()?;
        socket.close()?;
        Ok(Self { frames, answers })
    }
}

/// The bytes of the actions.
fn ask(socket: &mut Socket, frame: &[u8]) -> Result<Vec<u8>> {
    socket.send(frame)?;
    match socket.next()? {
        Event::Binary(bytes) => Ok(Value::parse(&bytes)?.actions().context("an answer without actions")?.to_vec()),
        Event::Text(words) => bail!("refused: {words}"),
        other => bail!("{other:?} in place of an answer"),
    }
}

/// What the clients share.
#[derive(Debug)]
pub(super) struct Table<'a> {
    pub(super) address: SocketAddr,
    pub(super) patience: Duration,
    pub(super) truth: &'a Truth,
    /// Requests that there are.
    pub(super) total: u64,
    /// Requests that a client has taken.
    pub(super) taken: AtomicU64,
    /// Requests whose fate is known.
    pub(super) done: AtomicU64,
    pub(super) tally: Mutex<Tally>,
}

/// Asks until all requests are taken.
pub(super) fn client(table: &Table, index: usize) {
    let (mut open, mut asked): (Option<Socket>, u64) = (None, 0);
    loop {
        let request = table.taken.fetch_add(1, Ordering::Relaxed);
        if request >= table.total {
            break;
        }
        asked += 1;
        let which = request as usize % table.truth.frames.len();
        let stays = !asked.is_multiple_of(HABITS[index % HABITS.len()]);
        let begin = Instant::now();
        let answered = one(table, open.take(), which, stays);
        let took_ms = begin.elapsed().as_secs_f64() * 1e3;
        let mut tally = table.tally.lock().unwrap_or_else(PoisonError::into_inner);
        match answered {
            Ok((socket, answer)) => {
                open = socket;
                tally.latencies_ms.push(took_ms);
                tally.wrong += u64::from(answer != table.truth.answers[which]);
            }
            Err(error) => {
                tally.lost += 1;
                if tally.reasons.len() < KEPT {
                    tally.reasons.push(format!("{error:#}"));
                }
            }
        }
        drop(tally);
        table.done.fetch_add(1, Ordering::Relaxed);
    }
}

/// One request, on the connection that is open or on a new one; the connection again if it stays.
fn one(table: &Table, open: Option<Socket>, which: usize, stays: bool) -> Result<(Option<Socket>, Vec<u8>)> {
    let mut socket = match open {
        Some(socket) => socket,
        None => Socket::open(table.address, table.patience)?,
    };
    let answer = ask(&mut socket, &table.truth.frames[which])?;
    if stays {
        return Ok((Some(socket), answer));
    }
    socket.close().context("the answer came, but no goodbye")?;
    Ok((None, answer))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{Ipv4Addr, TcpListener};

    use super::*;
    use crate::wire::message::Writer;
    use crate::wire::{head, unmasked};

    /// Reads a client's frame of more than 64 KiB, and forgets it.
    fn swallow(stream: &mut impl Read) -> Option<()> {
        let mut begin = [0; 14];
        stream.read_exact(&mut begin).ok()?;
        let len = u64::from_be_bytes(*begin[2..].first_chunk().unwrap());
        (std::io::copy(&mut stream.take(len), &mut std::io::sink()).ok()? == len).then_some(())
    }

    /// Answers questions with these bytes in turn, and lets go after the last.
    fn server(answers: Vec<&'static [u8]>) -> SocketAddr {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let mut answers = answers.into_iter();
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                head(&mut stream).unwrap();
                stream.write_all(b"HTTP/1.1 101 Switching Protocols\r\n\r\n").unwrap();
                stream.write_all(&unmasked(BINARY, b"\x80")).unwrap();
                while swallow(&mut stream).is_some() {
                    let Some(answer) = answers.next() else { return };
                    let mut writer = Writer::default();
                    writer.map(1).text("actions").array("<f4", &[1], answer);
                    stream.write_all(&unmasked(BINARY, &writer.bytes)).unwrap();
                }
            }
        });
        address
    }

    #[test]
    fn an_answer_that_differs_and_one_that_never_comes_are_found_out() {
        let patience = Duration::from_secs(60);
        let address = server(vec![b"good", b"good", b"evil", b"good"]);
        let mut socket = Socket::open(address, patience).unwrap();
        let frames = vec![frame(BINARY, &aloha::message(0, Asked::Seeded(0)))];
        let answers = vec![ask(&mut socket, &frames[0]).unwrap()];
        assert_eq!(answers, [b"good"]);
        drop(socket);
        let truth = Truth { frames, answers };
        let table = Table {
            address,
            patience,
            truth: &truth,
            total: 5,
            taken: AtomicU64::new(0),
            done: AtomicU64::new(0),
            tally: Mutex::default(),
        };
        client(&table, 0);
        let tally = table.tally.into_inner().unwrap();
        assert_eq!((tally.latencies_ms.len(), tally.wrong, tally.lost, table.done.into_inner()), (3, 1, 2, 5));
        assert!(!tally.reasons.is_empty(), "it is told why");
    }
}
