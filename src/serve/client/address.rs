//! Where a server is, from what a user says: `robot-pc`, `10.0.0.7:8000`, `ws://host:8000/path`.
//!
//! Source: openpi 15a9616, packages/openpi-client, websocket_client_policy.py: a host that begins with `ws` is the whole
//! address, any other is put behind `ws://`, and a port behind both. Invariant: one port, and no scheme but `ws`.

use std::fmt;
use std::net::Ipv6Addr;

use super::ClientError;

/// The port of openpi's server.
pub const PORT: u16 = 8000;

/// Where a server is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// A name, or an IP address without brackets.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// From the slash on.
    pub path: String,
}

impl Address {
    /// Of a host, or of a whole address; the port where it has none.
    ///
    /// # Errors
    /// Another scheme than `ws`, no host, two ports that differ, or one that is none.
    pub fn parse(text: &str, port: Option<u16>) -> Result<Self, ClientError> {
        let wrong = |what: &str| ClientError::Address { address: text.to_owned(), what: what.to_owned() };
        let rest = match text.split_once("://") {
            None => text,
            Some(("ws", rest)) => rest,
            Some(("wss", _)) => {
                return Err(wrong(
                    "TLS is not spoken here; put it into a tunnel (`ssh -L 8000:localhost:8000 HOST`) and name its end",
                ));
            }
            Some(("http" | "https", _)) => return Err(wrong("expected ws://HOST:PORT; the protocol is a websocket's")),
            Some(_) => return Err(wrong("expected HOST, HOST:PORT or ws://HOST:PORT")),
        };
        let (place, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, "/"),
        };
        let bare = place.parse::<Ipv6Addr>().is_ok();
        let (host, own) = match place.rsplit_once(':') {
            Some((host, digits)) if !bare && !place.ends_with(']') => {
                let number = digits.parse::<u16>().ok().filter(|port| *port > 0);
                (host, Some(number.ok_or_else(|| wrong("expected a port of 1 to 65535 behind the colon"))?))
            }
            _ => (place, None),
        };
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        if host.is_empty() || host.contains(|c: char| c.is_whitespace() || c.is_control() || "@?#[]".contains(c)) {
            return Err(wrong("expected HOST, HOST:PORT or ws://HOST:PORT"));
        }
        let port = match (own, port) {
            (Some(own), Some(port)) if own != port => {
                return Err(wrong(&format!("it has a port, and {port} is said beside it; say one")));
            }
            (own, port) => own.or(port).unwrap_or(PORT),
        };
        Ok(Address { host: host.to_owned(), port, path: path.to_owned() })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (open, close) = if self.host.contains(':') { ("[", "]") } else { ("", "") };
        let path = if self.path == "/" { "" } else { &self.path };
        write!(out, "ws://{open}{}{close}:{}{path}", self.host, self.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str, port: Option<u16>) -> String {
        Address::parse(text, port).map_or_else(|error| error.to_string(), |address| address.to_string())
    }

    #[test]
    fn hosts_and_whole_addresses_are_one() {
        assert_eq!(shown("robot-pc", None), "ws://robot-pc:8000");
        assert_eq!(shown("0.0.0.0", Some(9000)), "ws://0.0.0.0:9000");
        assert_eq!(shown("10.0.0.7:8001", None), "ws://10.0.0.7:8001");
        assert_eq!(shown("ws://host:8001", Some(8001)), "ws://host:8001");
        assert_eq!(shown("ws://host/policy/a", Some(80)), "ws://host:80/policy/a");
        for text in ["::1", "[::1]", "[::1]:8000", "ws://[::1]"] {
            assert_eq!(shown(text, None), "ws://[::1]:8000", "{text}");
        }
    }

    #[test]
    fn other_schemes_and_two_ports_are_refused_with_what_to_do() {
        assert!(shown("wss://host", None).contains("ssh -L"));
        assert!(shown("http://host:8000", None).contains("expected ws://"));
        assert!(shown("ws://host:1", Some(2)).contains("2 is said beside it"));
        for text in ["", "ws://", "host:port", "host:0", "host:70000", "a b", "user@host", "ftp://host", "a?b"] {
            assert!(shown(text, None).contains("expected"), "{text}");
        }
    }
}
