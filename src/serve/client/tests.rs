//! The client beside servers that answer, refuse, ping, hang up, or are something else.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::thread::JoinHandle;

use tungstenite::handshake::server::{Request, Response};
use tungstenite::protocol::{CloseFrame, frame::coding::CloseCode};

use super::*;
use crate::policy::array::Array;

type Connection = WebSocket<TcpStream>;

/// A server of one connection that has said `{}`; gives its client's settings.
fn server<T: Send + 'static>(run: impl FnOnce(Connection) -> T + Send + 'static) -> (Settings, JoinHandle<T>) {
    raw(|stream| {
        let mut socket = tungstenite::accept(stream).unwrap();
        socket.send(Message::Binary(vec![0x80].into())).unwrap();
        run(socket)
    })
}

fn raw<T: Send + 'static>(run: impl FnOnce(TcpStream) -> T + Send + 'static) -> (Settings, JoinHandle<T>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = Address::parse(&listener.local_addr().unwrap().to_string(), None).unwrap();
    let thread = std::thread::spawn(move || run(listener.accept().unwrap().0));
    (Settings { timeout: Duration::from_secs(20), ..Settings::new(address) }, thread)
}

fn connect(settings: &Settings) -> Result<Client, ClientError> {
    Client::connect(settings, |_| {})
}

fn observation() -> Tree {
    Tree::Map(vec![("state".to_owned(), Tree::Array(Array::f64([2], vec![0.5, f64::MAX])))])
}

#[test]
fn a_request_has_its_reply_and_pings_have_their_pongs() {
    let (settings, thread) = server(|mut socket| {
        let request = socket.read().unwrap();
        socket.send(Message::Ping(b"are you there"[..].into())).unwrap();
        assert_eq!(socket.read().unwrap(), Message::Pong(b"are you there"[..].into()));
        socket.send(request).unwrap();
        // The client says good-bye.
        matches!(socket.read(), Ok(Message::Close(_)))
    });
    let mut client = connect(&settings).unwrap();
    assert_eq!(client.metadata(), &Tree::Map(vec![]));
    assert_eq!(client.infer(&observation()).unwrap(), observation());
    client.close();
    assert!(thread.join().unwrap());
}

#[test]
fn the_key_is_sent_as_openpis_client_sends_it() {
    let (mut settings, thread) = raw(|stream| {
        let mut seen = None;
        #[expect(clippy::result_large_err, reason = "tungstenite's own signature")]
        let look = |request: &Request, response: Response| {
            seen = request.headers().get("authorization").cloned();
            Ok(response)
        };
        let mut socket = tungstenite::accept_hdr(stream, look).unwrap();
        socket.send(Message::Binary(vec![0x80].into())).unwrap();
        seen
    });
    settings.api_key = Some("secret".to_owned());
    connect(&settings).unwrap();
    assert_eq!(thread.join().unwrap().unwrap(), "Api-Key secret");
    settings.api_key = Some("a\nb".to_owned());
    assert!(matches!(connect(&settings), Err(ClientError::Key)));
}

#[test]
fn the_servers_text_is_the_error_and_the_connection_is_not_used_again() {
    let (settings, thread) = server(|mut socket| {
        socket.read().unwrap();
        socket.send(Message::Text("images/cam_high: it is missing\n".into())).unwrap();
        socket.close(Some(CloseFrame { code: CloseCode::Error, reason: "Internal server error.".into() })).unwrap();
    });
    let mut client = connect(&settings).unwrap();
    let error = client.infer(&observation()).unwrap_err();
    assert_eq!(error.to_string(), "the server says: images/cam_high: it is missing");
    assert!(!client.is_sound());
    assert!(client.infer(&observation()).unwrap_err().to_string().contains("connect anew"));
    thread.join().unwrap();
}

#[test]
fn a_server_that_hangs_up_or_sends_no_message_is_told_of() {
    let (settings, thread) = server(|mut socket| {
        socket.read().unwrap();
        socket.close(Some(CloseFrame { code: CloseCode::Away, reason: "it ends".into() })).unwrap();
    });
    let error = connect(&settings).unwrap().infer(&observation()).unwrap_err();
    assert_eq!(error.to_string(), "the server closed the connection: 1001 it ends");
    thread.join().unwrap();

    let (settings, thread) = server(|mut socket| {
        socket.read().unwrap();
    });
    let error = connect(&settings).unwrap().infer(&observation()).unwrap_err();
    assert!(error.to_string().starts_with("the server closed the connection: "), "{error}");
    thread.join().unwrap();

    let (settings, thread) = server(|mut socket| {
        socket.read().unwrap();
        socket.send(Message::Binary(vec![0xc1].into())).unwrap();
    });
    let error = connect(&settings).unwrap().infer(&observation()).unwrap_err();
    assert!(error.to_string().starts_with("the reply: the message: the byte 0xc1"), "{error}");
    thread.join().unwrap();
}

#[test]
fn a_reply_beyond_the_limits_is_not_held() {
    let (mut settings, thread) = server(|mut socket| {
        socket.read().unwrap();
        let _ = socket.send(Message::Binary(vec![0; 4096].into()));
    });
    settings.limits.message_bytes = 1024;
    let error = connect(&settings).unwrap().infer(&observation()).unwrap_err();
    assert!(matches!(error, ClientError::Socket(_)) && error.to_string().contains("4096 > 1024"), "{error}");
    thread.join().unwrap();
}

#[test]
fn a_server_that_only_pings_is_late() {
    let (mut settings, thread) = server(|mut socket| {
        socket.read().unwrap();
        while socket.send(Message::Ping(vec![].into())).is_ok() {
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    settings.timeout = Duration::from_millis(300);
    let mut client = connect(&settings).unwrap();
    let error = client.infer(&observation()).unwrap_err();
    assert!(error.to_string().starts_with("no reply within 0.3 s"), "{error}");
    drop(client);
    thread.join().unwrap();
}

#[test]
fn who_is_no_policy_server_is_named_for_what_it_is() {
    let answering = |answer: &'static [u8]| {
        let (settings, thread) = raw(move |mut stream| {
            let mut bytes = [0; 4096];
            let _ = stream.read(&mut bytes);
            stream.write_all(answer).unwrap();
        });
        let words = connect(&settings).unwrap_err().to_string();
        thread.join().unwrap();
        words
    };
    assert!(
        answering(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi")
            .contains("an HTTP server that is no policy server")
    );
    assert!(
        answering(b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n").contains("is --api-key the server's?")
    );
    assert!(answering(b"SSH-2.0-OpenSSH_9.6\r\n\r\n\r\n").contains("another kind of server"));
    assert!(answering(b"").contains("another kind of server"));
}

#[test]
fn a_server_that_is_not_up_yet_is_waited_for() {
    let place = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut settings = Settings::new(Address::parse(&place.to_string(), None).unwrap());
    let words = connect(&settings).unwrap_err().to_string();
    assert!(words.contains("is the server up, and is this its port?"), "{words}");
    settings.wait = Some(Duration::from_secs(60));
    settings.retry = Duration::from_millis(10);
    let mut thread = None;
    let client = Client::connect(&settings, |_| {
        // Nobody was there; from now on somebody is.
        thread.get_or_insert_with(|| {
            let listener = TcpListener::bind(place).unwrap();
            std::thread::spawn(move || {
                let mut socket = tungstenite::accept(listener.accept().unwrap().0).unwrap();
                socket.send(Message::Binary(vec![0x80].into())).unwrap();
            })
        });
    });
    assert_eq!(client.unwrap().metadata(), &Tree::Map(vec![]));
    thread.unwrap().join().unwrap();
}
