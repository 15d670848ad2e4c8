//! The address of a broker or a webhook, parsed once when the configuration is read.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU16;
use std::str::FromStr;
use std::sync::Arc;

use http::Uri;

use super::problem::Invalid;

/// How an endpoint is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    Mqtt,
    Mqtts,
    /// MQTT over WebSocket.
    Ws,
    Wss,
    Http,
    Https,
}

impl Scheme {
    pub const ALL: &[Self] = &[Self::Mqtt, Self::Mqtts, Self::Ws, Self::Wss, Self::Http, Self::Https];
    pub const WEB: &[Self] = &[Self::Http, Self::Https];
    pub const MQTT: &[Self] = &[Self::Mqtt, Self::Mqtts, Self::Ws, Self::Wss];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Mqtt => "mqtt",
            Self::Mqtts => "mqtts",
            Self::Ws => "ws",
            Self::Wss => "wss",
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    const fn is_mqtt(self) -> bool {
        matches!(self, Self::Mqtt | Self::Mqtts | Self::Ws | Self::Wss)
    }

    const fn default_port(self) -> u16 {
        match self {
            Self::Mqtt => 1883,
            Self::Mqtts => 8883,
            Self::Ws | Self::Http => 80,
            Self::Wss | Self::Https => 443,
        }
    }
}

/// `mqtt://host[:port]`, `mqtts://host[:port]`, or with `ws`, `wss`, `http` or `https` as the scheme `ws://host[:port][/path]`.
///
/// Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint(Arc<Parsed>);

#[derive(Debug, PartialEq, Eq)]
pub struct Parsed {
    scheme: Scheme,
    uri: Uri,
    port: u16,
    /// As written, for messages.
    text: Box<str>,
}

impl Endpoint {
    /// Parses an address whose scheme is one of `allowed`.
    pub fn parse(text: &str, allowed: &[Scheme]) -> Result<Self, Invalid> {
        let invalid = |why: &str| Invalid::new(format!("invalid address {text:?}: {why}"));
        let (scheme, rest) = text.split_once("://").unwrap_or(("", text));
        let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        if authority.contains('@') {
            // Before any message that repeats the text, which may hold the password.
            let hint = if scheme.starts_with("http") { "authorization_file" } else { "username and password_file" };
            let what = "an address must not contain a user name or a password";
            return Err(Invalid::new(what).hint(format!("use {hint}")));
        }
        let Some(scheme) = allowed.iter().copied().find(|known| known.as_str() == scheme) else {
            return Err(match scheme {
                "" => invalid("the scheme is missing").hint(format!("write {}://{text}", allowed[0].as_str())),
                "tcp" => invalid("unknown scheme tcp://").hint("write mqtt://"),
                "ssl" | "tls" => invalid(&format!("unknown scheme {scheme}://")).hint("write mqtts://"),
                _ => {
                    let schemes: Vec<String> = allowed.iter().map(|it| format!("{}://", it.as_str())).collect();
                    let hint = format!("use one of {}", schemes.join(", "));
                    invalid(&format!("unknown scheme {scheme}://")).hint(hint)
                }
            });
        };
        if let Some(bad) = text.chars().find(|c| !c.is_ascii_graphic()) {
            return Err(invalid(&format!("{bad:?} is not allowed in an address")).hint("remove it"));
        }
        if !authority.starts_with('[') && authority.matches(':').count() > 1 {
            return Err(invalid("an IPv6 address must stand in brackets").hint("for example [::1]:1883"));
        }
        if authority.is_empty() || authority.starts_with(':') {
            return Err(invalid("the host is missing").hint(format!("for example {}://localhost", scheme.as_str())));
        }
        let uri: Uri = text.parse().map_err(|error: http::uri::InvalidUri| invalid(&error.to_string()))?;
        if matches!(scheme, Scheme::Mqtt | Scheme::Mqtts) && !matches!(path, "" | "/") {
            return Err(invalid("an MQTT address has no path").hint(format!("remove {path}")));
        }
        let host = uri.host().unwrap_or_default();
        let (_, after_host) = authority.split_at(host.len());
        let allowed_in_host = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        if authority.starts_with('[') {
            let host = without_brackets(host);
            host.parse::<Ipv6Addr>().map_err(|_| invalid("no valid IPv6 address between the brackets"))?;
        } else if let Some(bad) = host.chars().find(|c| !allowed_in_host(*c)) {
            return Err(invalid(&format!("{bad:?} is not allowed in a host name")));
        }
        let port = match after_host {
            "" => scheme.default_port(),
            _ => {
                let port = after_host.strip_prefix(':').and_then(|port| port.parse::<NonZeroU16>().ok());
                port.ok_or_else(|| invalid("the port must be a number from 1 to 65535"))?.get()
            }
        };
        Ok(Self(Arc::new(Parsed { scheme, uri, port, text: text.into() })))
    }

    pub fn as_str(&self) -> &str {
        &self.0.text
    }

    pub fn uri(&self) -> &Uri {
        &self.0.uri
    }

    /// Host name or IP address, without the brackets of IPv6.
    pub fn host(&self) -> &str {
        without_brackets(self.0.uri.host().unwrap_or_default())
    }

    /// Port as written, or the scheme's default.
    pub fn port(&self) -> u16 {
        self.0.port
    }

    pub fn is_mqtt(&self) -> bool {
        self.0.scheme.is_mqtt()
    }

    /// Whether MQTT is spoken over WebSocket.
    pub fn is_websocket(&self) -> bool {
        matches!(self.0.scheme, Scheme::Ws | Scheme::Wss)
    }

    pub fn is_tls(&self) -> bool {
        matches!(self.0.scheme, Scheme::Mqtts | Scheme::Wss | Scheme::Https)
    }

    /// Whether the endpoint is on this machine. Names are not resolved.
    pub fn is_local(&self) -> bool {
        let host = self.host();
        host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
    }

    /// Whether both addresses lead to the same listener, as far as their text tells.
    pub fn is_same_listener(&self, other: &Self) -> bool {
        let same_host = self.host().eq_ignore_ascii_case(other.host()) || self.is_local() && other.is_local();
        self.port() == other.port() && same_host
    }
}

/// The broker on this machine.
impl Default for Endpoint {
    fn default() -> Self {
        "mqtt://localhost:1883".parse().expect("the default address is valid")
    }
}

fn without_brackets(host: &str) -> &str {
    host.trim_start_matches('[').trim_end_matches(']')
}

impl FromStr for Endpoint {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        Self::parse(text, Scheme::ALL)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_their_parts() {
        let check = |text: &str, expected: (&str, u16, bool, bool)| {
            let it: Endpoint = text.parse().unwrap();
            assert_eq!((it.host(), it.port(), it.is_tls(), it.is_local()), expected, "{text}");
            assert_eq!(it.to_string(), text);
        };
        check("mqtt://localhost", ("localhost", 1883, false, true));
        check("mqtt://localhost:1884/", ("localhost", 1884, false, true));
        check("mqtts://broker.example", ("broker.example", 8883, true, false));
        check("mqtts://10.0.0.7:1234/", ("10.0.0.7", 1234, true, false));
        check("mqtts://[::1]:9000", ("::1", 9000, true, true));
        check("mqtt://[fe80::1]", ("fe80::1", 1883, false, false));
        check("ws://localhost/mqtt", ("localhost", 80, false, true));
        check("wss://broker.example:8084/mqtt?a=b", ("broker.example", 8084, true, false));
        check("http://127.0.0.2:8080/in?a=b", ("127.0.0.2", 8080, false, true));
        check("https://localhost.example.com?a=b", ("localhost.example.com", 443, true, false));
    }

    #[test]
    fn an_mqtt_address_has_no_path() {
        let webhook: Endpoint = "https://example.com/in?site=7".parse().unwrap();
        assert_eq!(webhook.uri().path_and_query().map(|it| it.as_str()), Some("/in?site=7"));
        assert!("mqtt://example.com/in".parse::<Endpoint>().is_err());
    }

    #[test]
    fn a_password_is_not_repeated() {
        for text in ["mqtt://joe:secret@a", "joe:secret@a", "tcp://joe:secret@a", "https://joe:secret@a/b c"] {
            let error = text.parse::<Endpoint>().unwrap_err();
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }

    proptest::proptest! {
        #[test]
        fn nothing_makes_it_panic(text in "(mqtt|https)://[\\[\\]:a-f0-9.@/?#%,é ]{0,20}") {
            let _ = text.parse::<Endpoint>();
        }
    }
}
