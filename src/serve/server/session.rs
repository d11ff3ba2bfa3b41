//! One client's conversation: the metadata, then a request and its answer by turns, until either has enough.
//!
//! Source: openpi 15a9616, serving/websocket_policy_server.py: the order of frames, the two server timings and what lies
//! between their clocks, the text and the close code of an error. Its text is a traceback; ours is a sentence.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::body::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::AbortHandle;
use tungstenite::protocol::Message;
use tungstenite::protocol::frame::coding::CloseCode;

use super::event::{Timing, What, Why};
use super::line::{Frame, Line};
use super::queue::{Done, Patience, ending};
use super::room::{Kept, Room, internal};
use crate::serve::policy::{Kind, Policy, Refusal};
use crate::serve::request::{self, Answer, Request};
use crate::serve::tree::Tree;
use crate::serve::wire;

/// The reason that openpi's server gives, to the letter.
const REASON: &str = "Internal server error. Traceback included in previous frame.";
/// What a client is told at most, in bytes: sentences name foreign keys.
const TOLD_BYTES: usize = 4096;

/// Who it is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Client {
    pub(super) number: u64,
    pub(super) peer: SocketAddr,
}

/// What goes from one request to the next.
#[derive(Debug, Default)]
struct Before {
    /// From waiting for the request to having sent the answer.
    total: Option<Duration>,
    /// The model's.
    model_ms: Option<f64>,
}

/// What came of a request.
struct Fulfilled {
    done: Done,
    answer: Answer,
    prepare: Duration,
    /// Everything but reading the message: openpi's `infer_ms`.
    infer: Duration,
    /// Does the client know of our extensions?
    extended: bool,
    /// For the tap.
    inputs: Option<Request>,
}

/// An observation that is ready, or half way.
struct Prepared<R> {
    ready: R,
    patience: Patience,
    /// When the message was read.
    read: Instant,
    prepare: Duration,
    extended: bool,
    inputs: Option<Request>,
}

/// Speaks with a client until it ends.
pub(super) async fn converse<P: Policy, S: AsyncRead + AsyncWrite + Unpin>(
    room: &Arc<Room<P>>,
    mut line: Line<S>,
    client: Client,
) {
    let _seat = Seat::new(room);
    let Client { number, peer } = client;
    room.tell(What::Opened { client: number, peer });
    let why = match turns(room, &mut line, client).await {
        Ok(never) => match never {},
        Err(why) => why,
    };
    // Told before the goodbye, which may take its time.
    room.tell(What::Closed { client: number, peer, why: why.clone() });
    match why {
        Why::Refused => line.close(CloseCode::Error, REASON).await,
        Why::Ending => line.close(CloseCode::Away, "").await,
        Why::Protocol(_) => line.close(CloseCode::Protocol, "").await,
        Why::Left(_) | Why::Vanished(_) | Why::Silent | Why::Deaf => {}
    }
}

async fn turns<P: Policy, S: AsyncRead + AsyncWrite + Unpin>(
    room: &Arc<Room<P>>,
    line: &mut Line<S>,
    client: Client,
) -> Result<std::convert::Infallible, Why> {
    line.send(Message::Binary(room.metadata.clone())).await?;
    room.metrics.sent(room.metadata.len());
    let mut before = Before::default();
    loop {
        // openpi's total begins before the request is there.
        let began = Instant::now();
        let frame = tokio::select! {
            biased;
            () = room.stop.wait() => return Err(Why::Ending),
            frame = line.receive() => frame?,
        };
        let arrived = Instant::now();
        let received_bytes = match &frame {
            Frame::Binary(bytes) => bytes.len(),
            Frame::Text | Frame::TooLong { .. } => 0,
        };
        room.metrics.received(received_bytes);
        let fulfilled = match line.during(infer(room, frame, arrived)).await? {
            Ok(fulfilled) => fulfilled,
            Err(refusal) => return Err(refuse(room, line, client, refusal).await),
        };
        let Fulfilled { done, answer, prepare, infer, extended, inputs } = fulfilled;
        let model_ms = answer.infer_ms;
        let kept = inputs.map(|inputs| kept(inputs, &answer));
        let timing = request::Timing {
            infer_ms: milliseconds(infer),
            prev_total_ms: before.total.map(milliseconds),
            queue_ms: milliseconds(done.queue),
            prev_model_ms: before.model_ms,
            batch: done.batch,
        };
        let bytes = Bytes::from(wire::encode(&answer.message(&timing, extended)));
        let sent_bytes = bytes.len();
        line.send(Message::Binary(bytes)).await?;
        before = Before { total: Some(began.elapsed()), model_ms: Some(model_ms) };
        let Done { queue, model, batch, .. } = done;
        let timing = Timing { prepare, queue, model, total: arrived.elapsed(), batch, received_bytes, sent_bytes };
        room.metrics.sent(sent_bytes);
        room.metrics.answered(&timing);
        room.tell(What::Answered { client: client.number, peer: client.peer, timing });
        if let (Some(keep), Some(kept)) = (&room.kept, kept) {
            // A tap that is slow slows its client, and loses nothing.
            let _ = line.during(keep.send(Some(kept))).await?;
        }
    }
}

/// As openpi's recorder sees it, which stands between policy and server.
fn kept(mut inputs: Request, answer: &Answer) -> Kept {
    if answer.seed.is_some() {
        inputs.extensions.get_or_insert_default().seed = answer.seed;
    }
    let mut outputs = answer.outputs.clone();
    let timing = vec![("infer_ms".to_owned(), Tree::Float(answer.infer_ms))];
    outputs.push(("policy_timing".to_owned(), Tree::Map(timing)));
    Kept { inputs, outputs: Tree::Map(outputs) }
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Tells the client in a sentence, and the listener in full.
async fn refuse<P: Policy, S: AsyncRead + AsyncWrite + Unpin>(
    room: &Room<P>,
    line: &mut Line<S>,
    client: Client,
    refusal: Refusal,
) -> Why {
    room.metrics.refused(refusal.kind);
    let told = refusal.message.get(..refusal.message.floor_char_boundary(TOLD_BYTES)).unwrap_or_default().to_owned();
    room.tell(What::Refused { client: client.number, peer: client.peer, refusal });
    room.metrics.sent(told.len());
    match line.send(Message::Text(told.into())).await {
        Ok(()) => Why::Refused,
        Err(why) => why,
    }
}

/// A frame's answer.
async fn infer<P: Policy>(room: &Arc<Room<P>>, frame: Frame, arrived: Instant) -> Result<Fulfilled, Refusal> {
    let bytes = match frame {
        Frame::Binary(bytes) => bytes,
        Frame::Text => return Err(malformed("a text frame: expected a binary one, an observation in MessagePack")),
        Frame::TooLong { size } => {
            let most = room.settings.max_message_bytes;
            return Err(malformed(format!("the message has {size} bytes or more, expected at most {most}")));
        }
    };
    let Prepared { ready, patience, read, prepare, extended, inputs } = prepare(room, bytes, arrived).await?;
    let (ticket, mut done) = room.queue.push(ready, patience)?;
    let done = match patience.until() {
        None => done.await,
        Some(until) => tokio::select! {
            biased;
            done = &mut done => done,
            () = tokio::time::sleep_until(until.into()) => {
                if ticket.withdraw() {
                    return Err(patience.refusal());
                }
                // The model has it already.
                done.await
            }
        },
    };
    let infer = read.elapsed();
    // The model's thread always answers, unless it is gone.
    let mut done = done.map_err(|_| ending())?;
    let answer = std::mem::replace(&mut done.answer, Err(ending()))?;
    Ok(Fulfilled { done, answer, prepare, infer, extended, inputs })
}

/// Decodes and prepares on one of a few threads.
async fn prepare<P: Policy>(
    room: &Arc<Room<P>>,
    bytes: Bytes,
    arrived: Instant,
) -> Result<Prepared<P::Ready>, Refusal> {
    let patience = Patience { since: arrived, limit: room.settings.deadline };
    let work = {
        let room = Arc::clone(room);
        move || {
            if patience.over(Instant::now()) {
                return Err(patience.refusal());
            }
            let limits = wire::Limits { message_bytes: room.settings.max_message_bytes, ..wire::Limits::default() };
            let message = wire::decode(&bytes, &limits).map_err(|error| malformed(error.to_string()))?;
            drop(bytes);
            let request = Request::parse(message)?;
            let read = Instant::now();
            let patience = patience.and(request.extensions.as_ref().and_then(|extensions| extensions.deadline));
            let extended = request.extensions.is_some();
            let inputs = room.kept.is_some().then(|| request.clone());
            let ready = room.caught("prepare", || room.policy.prepare(request))??;
            Ok(Prepared { ready, patience, read, prepare: arrived.elapsed(), extended, inputs })
        }
    };
    let task = tokio::task::spawn_blocking(work);
    // A client that goes away before a thread had time for it costs nothing.
    let _unless_gone = Abort(task.abort_handle());
    task.await.map_err(|error| internal(format!("prepare: {error}")))?
}

struct Abort(AbortHandle);

impl Drop for Abort {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn malformed(message: impl Into<String>) -> Refusal {
    Refusal::new(Kind::Malformed, message)
}

/// A client that is there, counted.
struct Seat<'a, P: Policy>(&'a Room<P>);

impl<'a, P: Policy> Seat<'a, P> {
    fn new(room: &'a Room<P>) -> Self {
        room.metrics.opened();
        room.queue.enter();
        Seat(room)
    }
}

impl<P: Policy> Drop for Seat<'_, P> {
    fn drop(&mut self) {
        self.0.metrics.closed();
        self.0.queue.leave();
    }
}
