//! A server on this machine's own address that speaks as much of Google Cloud Storage's XML interface as the downloads
//! ask of it (`list-type=2`, object requests with and without a range), and misbehaves on request.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use md5::{Digest, Md5};
use pi0_burn::cache::Options;

use super::BUCKET;

/// What the server does, beside serving `objects`. Everything may be changed while it runs.
#[derive(Default)]
pub(crate) struct Script {
    pub(crate) objects: BTreeMap<String, Vec<u8>>,
    /// Entity tags that are not the MD5 sum of the object.
    pub(crate) tags: BTreeMap<String, String>,
    /// Sizes in the listing that are not the object's own.
    pub(crate) sizes: BTreeMap<String, u64>,
    /// How many more requests for an object end in the middle of its bytes.
    pub(crate) breaks: BTreeMap<String, usize>,
    /// Refuses to list, and serves objects all the same.
    pub(crate) unlistable: bool,
    /// Keys that are in the listing and cannot be fetched.
    pub(crate) unfetchable: Vec<String>,
    /// At most so many objects in one page of the listing; no bound if 0.
    pub(crate) page: usize,
    /// Answers every request with this status line and these headers instead.
    pub(crate) always: Option<String>,
    /// `GET key` and `LIST prefix` in the order of their coming.
    pub(crate) log: Vec<String>,
}

pub(crate) struct Server {
    pub(crate) base_url: String,
    script: Arc<Mutex<Script>>,
}

impl Server {
    pub(crate) fn new(objects: &[(&str, &[u8])]) -> Server {
        let objects = objects.iter().map(|(key, bytes)| ((*key).to_owned(), bytes.to_vec())).collect();
        let script = Arc::new(Mutex::new(Script { objects, ..Script::default() }));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let base_url = format!("http://{}", listener.local_addr().unwrap());
        let shared = Arc::clone(&script);
        // Ends with the process: it only ever waits for the next connection.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let script = Arc::clone(&shared);
                // A client that hangs up early is part of some tests.
                std::thread::spawn(move || drop(answer(stream, &script)));
            }
        });
        Server { base_url, script }
    }

    /// A checkpoint with two levels, an odd name, an empty file and the empty object that stands for its folder.
    pub(crate) fn tiny() -> Server {
        Server::new(&[
            ("checkpoints/pi0_tiny/", b""),
            ("checkpoints/pi0_tiny/_METADATA", b"{}"),
            ("checkpoints/pi0_tiny/assets/a b+c%2F.json", b"odd"),
            ("checkpoints/pi0_tiny/params/", b""),
            ("checkpoints/pi0_tiny/params/d/0123", &[7; 300_000]),
            ("checkpoints/pi0_tiny/params/empty", b""),
            ("checkpoints/pi0_tiny/params/manifest.ocdbt", b"manifest"),
            ("checkpoints/pi0_tiny_other/params", b"a neighbour"),
        ])
    }

    pub(crate) fn script(&self) -> std::sync::MutexGuard<'_, Script> {
        self.script.lock().unwrap()
    }

    /// What was asked for since the last call.
    pub(crate) fn log(&self) -> Vec<String> {
        std::mem::take(&mut self.script().log)
    }

    pub(crate) fn options(&self) -> Options {
        Options { base_url: Some(self.base_url.clone()), retries: 0, ..Options::default() }
    }
}

/// Reads one request, answers it and closes the connection.
fn answer(mut stream: TcpStream, script: &Mutex<Script>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let mut start = None;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || line.trim().is_empty() {
            break;
        }
        let line = line.to_ascii_lowercase();
        assert!(!line.starts_with("authorization:"), "no credentials are to be sent: {line}");
        if let Some(range) = line.strip_prefix("range: bytes=") {
            start = range.split('-').next().and_then(|start| start.parse::<usize>().ok());
        }
    }
    let mut words = request.split_whitespace();
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let path = decode(path);
    let mut script = script.lock().unwrap();
    if let Some(head) = &script.always {
        return write!(stream, "HTTP/1.1 {head}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
    }
    let Some(key) = path.strip_prefix('/').and_then(|path| path.strip_prefix(BUCKET)) else {
        return write!(stream, "HTTP/1.1 404 Not Found\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
    };
    let Some(key) = key.strip_prefix('/') else {
        if script.unlistable {
            return write!(stream, "HTTP/1.1 403 Forbidden\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
        }
        let body = listing(&mut script, query);
        return write!(
            stream,
            "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: application/xml\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
    };
    script.log.push(format!("{method} {key}"));
    let tag = script.tag(key);
    let Some(bytes) = script.objects.get(key).filter(|_| !script.unfetchable.iter().any(|name| name == key)).cloned()
    else {
        return write!(stream, "HTTP/1.1 404 Not Found\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
    };
    let (status, range) = match start {
        Some(start) => {
            ("206 Partial Content", format!("Content-Range: bytes {start}-{}/{}\r\n", bytes.len() - 1, bytes.len()))
        }
        None => ("200 OK", String::new()),
    };
    let rest = &bytes[start.unwrap_or(0)..];
    write!(
        stream,
        "HTTP/1.1 {status}\r\nConnection: close\r\nETag: {tag}\r\n{range}Last-Modified: Mon, 03 Mar 2025 10:00:00 GMT\r\n\
         Content-Length: {}\r\n\r\n",
        rest.len()
    )?;
    let breaks = method == "GET"
        && script.breaks.get_mut(key).is_some_and(|left| std::mem::replace(left, left.saturating_sub(1)) > 0);
    drop(script);
    match method {
        "HEAD" => Ok(()),
        _ if breaks => stream.write_all(&rest[..rest.len() / 2]),
        _ => stream.write_all(rest),
    }
}

impl Script {
    fn tag(&self, key: &str) -> String {
        let sum = || self.objects.get(key).map(|bytes| format!("\"{}\"", hex(bytes))).unwrap_or_default();
        self.tags.get(key).cloned().unwrap_or_else(sum)
    }
}

/// One page of `list-type=2`. The token of the next page is the last key of this one.
fn listing(script: &mut Script, query: &str) -> String {
    let query: BTreeMap<_, _> = query.split('&').filter_map(|pair| pair.split_once('=')).collect();
    assert_eq!(query.get("list-type"), Some(&"2"));
    let value = |name| query.get(name).map(|value| decode(&value.replace('+', " "))).unwrap_or_default();
    let (prefix, after) = (value("prefix"), value("continuation-token"));
    script.log.push(format!("LIST {prefix}"));
    let mut keys: Vec<String> = script.objects.keys().filter(|key| key.starts_with(&prefix)).cloned().collect();
    // What hostile tests put under `!` is listed by the rest of its name, whatever was asked for.
    keys.extend(script.objects.keys().filter_map(|key| key.strip_prefix('!').map(str::to_owned)));
    keys.retain(|key| after.is_empty() || *key > after);
    let more = script.page > 0 && keys.len() > script.page;
    if more {
        keys.truncate(script.page);
    }
    let mut xml = String::from("<?xml version='1.0' encoding='UTF-8'?><ListBucketResult>");
    for key in &keys {
        let size = script.objects.get(key).map_or(1, |bytes| bytes.len() as u64);
        let size = script.sizes.get(key).copied().unwrap_or(size);
        let (key, tag) = (escape(key), escape(&script.tag(key)));
        xml += &format!(
            "<Contents><Key>{key}</Key><LastModified>2025-03-03T10:00:00.000Z</LastModified><ETag>{tag}</ETag>\
             <Size>{size}</Size></Contents>"
        );
    }
    if let Some(last) = keys.last().filter(|_| more) {
        xml += &format!("<NextContinuationToken>{}</NextContinuationToken>", escape(last));
    }
    xml + "</ListBucketResult>"
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digits = [rest.next().unwrap(), rest.next().unwrap()];
            bytes.push(u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap());
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).unwrap()
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('"', "&quot;")
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    Md5::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
