//! Where a broker is, taken apart from an address that the configuration has found good.

use std::net::IpAddr;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) is_tls: bool,
}

impl Address {
    pub(crate) fn of(url: &str) -> Option<Self> {
        let (scheme, rest) = url.split_once("://")?;
        let authority = rest.split(['/', '?', '#']).next()?;
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => (host, Some(port.parse().ok()?)),
            _ => (authority, None),
        };
        let (usual, is_tls) = match scheme {
            "mqtt" => (1883, false),
            "mqtts" => (8883, true),
            "http" => (80, false),
            "https" => (443, true),
            _ => return None,
        };
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        Some(Self { host, port: port.unwrap_or(usual), is_tls })
    }

    /// Whether what is sent there does not leave this machine.
    pub(crate) fn is_local(&self) -> bool {
        self.host.eq_ignore_ascii_case("localhost") || self.host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_where_they_lead() {
        let parts = |url| Address::of(url).map(|it| (it.host.clone(), it.port, it.is_tls, it.is_local()));
        assert_eq!(parts("mqtt://localhost"), Some(("localhost".into(), 1883, false, true)));
        assert_eq!(parts("mqtts://10.0.0.7:1234/"), Some(("10.0.0.7".into(), 1234, true, false)));
        assert_eq!(parts("mqtt://[::1]:1884"), Some(("::1".into(), 1884, false, true)));
        assert_eq!(parts("mqtt://[fe80::1]"), Some(("fe80::1".into(), 1883, false, false)));
        assert_eq!(parts("http://127.0.0.2:8080/in?a=b"), Some(("127.0.0.2".into(), 8080, false, true)));
        assert_eq!(parts("https://localhost.example.com"), Some(("localhost.example.com".into(), 443, true, false)));
    }
}
