//! One client's websocket: frames in and out, pings, and an end.
//!
//! Invariants: while anything else is waited for, frames are read, so that pings are answered and a goodbye is heard; a
//! client that sends ahead is read one message ahead and no further; whoever neither speaks nor answers a ping, or does not
//! read what it is sent, is dropped. A message's length is held against its limit when its frame's head is there, before any
//! of it is kept.

use std::future::Future;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use hyper::body::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, timeout};
use tokio_tungstenite::WebSocketStream;
use tungstenite::error::CapacityError;
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::protocol::{CloseFrame, Message, Role, WebSocketConfig};

use super::event::Why;

/// What is read at once; an observation of three pictures is 450 kB.
const READ_BYTES: usize = 64 << 10;
/// How long a client may take to say goodbye in its turn.
const LINGER: Duration = Duration::from_secs(2);

/// One client's websocket.
pub(super) struct Line<S> {
    socket: WebSocketStream<S>,
    /// Read, but not asked for yet.
    ahead: Option<Frame>,
    every: Duration,
    patience: Duration,
    /// When the client was last heard.
    heard: Instant,
    /// When it was pinged, if it was silent since.
    pinged: Option<Instant>,
    /// Its bytes make no frames any more.
    broken: bool,
}

/// What a client says.
#[derive(Debug)]
pub(super) enum Frame {
    /// A binary message.
    Binary(Bytes),
    /// A text, which no client of openpi's sends.
    Text,
    /// A message that is longer than it may be; nothing after it can be read.
    TooLong { size: usize },
}

impl<S: AsyncRead + AsyncWrite + Unpin> Line<S> {
    /// After the handshake.
    pub(super) async fn new(stream: S, max_message_bytes: usize, every: Duration, patience: Duration) -> Self {
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BYTES)
            .write_buffer_size(0)
            .max_message_size(Some(max_message_bytes))
            .max_frame_size(Some(max_message_bytes));
        let socket = WebSocketStream::from_raw_socket(stream, Role::Server, Some(config)).await;
        Line { socket, ahead: None, every, patience, heard: Instant::now(), pinged: None, broken: false }
    }

    /// The next message.
    pub(super) async fn receive(&mut self) -> Result<Frame, Why> {
        match self.ahead.take() {
            Some(frame) => Ok(frame),
            None => self.read().await,
        }
    }

    /// Waits for something else, with the line alive meanwhile.
    pub(super) async fn during<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Why> {
        tokio::pin!(work);
        loop {
            let wake = self.wake();
            tokio::select! {
                biased;
                done = &mut work => return Ok(done),
                frame = self.read(), if self.ahead.is_none() => self.ahead = Some(frame?),
                // Nothing is read, so silence means nothing; a line that is dead shows when it is written to.
                () = tokio::time::sleep_until(wake), if self.ahead.is_some() => self.ping().await?,
            }
        }
    }

    /// Sends one.
    pub(super) async fn send(&mut self, message: Message) -> Result<(), Why> {
        let sent = timeout(self.patience, self.socket.send(message)).await.map_err(|_| Why::Deaf)?;
        sent.map_err(|error| Why::Vanished(error.to_string()))
    }

    /// Says goodbye, and waits a little for the client's, so that it reads what it was sent before.
    pub(super) async fn close(mut self, code: CloseCode, reason: &'static str) {
        let frame = Message::Close(Some(CloseFrame { code, reason: reason.into() }));
        let goodbye = async {
            if self.socket.send(frame).await.is_err() {
                return;
            }
            if !self.broken {
                while let Some(Ok(_)) = self.socket.next().await {}
                return;
            }
            // What still comes is no frame. It is read all the same: a connection that is closed on unread bytes is reset,
            // and the client would never see why.
            let stream = self.socket.get_mut();
            let mut scratch = [0; 4096];
            if stream.shutdown().await.is_ok() {
                while matches!(stream.read(&mut scratch).await, Ok(count) if count > 0) {}
            }
        };
        let _ = timeout(LINGER, goodbye).await;
    }

    /// The next message off the wire. May be dropped while it waits: nothing is lost.
    async fn read(&mut self) -> Result<Frame, Why> {
        loop {
            let wake = self.wake();
            let seen = tokio::select! {
                seen = self.socket.next() => seen,
                () = tokio::time::sleep_until(wake) => {
                    if self.pinged.is_some() {
                        return Err(Why::Silent);
                    }
                    self.ping().await?;
                    continue;
                }
            };
            self.heard = Instant::now();
            self.pinged = None;
            match seen {
                Some(Ok(Message::Binary(bytes))) => return Ok(Frame::Binary(bytes)),
                Some(Ok(Message::Text(_))) => return Ok(Frame::Text),
                // Its pong is on its way; whoever pings and never reads is not read either.
                Some(Ok(Message::Ping(_))) => self.flush().await?,
                Some(Ok(Message::Pong(_) | Message::Frame(_))) => {}
                Some(Ok(Message::Close(frame))) => {
                    let _ = self.flush().await;
                    return Err(Why::Left(frame.map(|frame| frame.code.into())));
                }
                Some(Err(tungstenite::Error::Capacity(CapacityError::MessageTooLong { size, .. }))) => {
                    self.broken = true;
                    return Ok(Frame::TooLong { size });
                }
                Some(Err(error @ (tungstenite::Error::Protocol(_) | tungstenite::Error::Utf8(_)))) => {
                    self.broken = true;
                    return Err(lost(error));
                }
                Some(Err(error)) => return Err(Why::Vanished(error.to_string())),
                None => return Err(Why::Vanished("the connection is closed".to_owned())),
            }
        }
    }

    /// When something is due: a ping, or the end of waiting for its pong.
    fn wake(&self) -> Instant {
        self.pinged.map_or(self.heard + self.every, |pinged| pinged + self.patience)
    }

    async fn ping(&mut self) -> Result<(), Why> {
        self.pinged = Some(Instant::now());
        self.send(Message::Ping(Bytes::new())).await
    }

    async fn flush(&mut self) -> Result<(), Why> {
        let flushed = timeout(self.patience, self.socket.flush()).await.map_err(|_| Why::Deaf)?;
        flushed.map_err(|error| Why::Vanished(error.to_string()))
    }
}

fn lost(error: tungstenite::Error) -> Why {
    match error {
        tungstenite::Error::Protocol(tungstenite::error::ProtocolError::ResetWithoutClosingHandshake) => {
            Why::Vanished("the connection is closed".to_owned())
        }
        other => Why::Protocol(other.to_string()),
    }
}
