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
