//! Loops by way of a sink: it is the broker of `[mqtt]`, and a function hears what the board sends there.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, ToSocketAddrs as _, UdpSocket};
use std::path::PathBuf;
use std::sync::mpsc;
use std::time::Duration;

use sedge_core::config::{Config, Endpoint, Sink};
use sedge_core::manifest::Manifest;
use sedge_core::topic::TopicFilter;

/// How long names may take to be resolved.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(3);

/// Warns of what is wrong where a sink is the local broker.
pub(super) fn warn_of_one_broker(
    sink: &Sink,
    config: &Config,
    functions: &[(PathBuf, Manifest)],
    warn: &mut impl FnMut(&str, &str, &str),
) {
    let Some(receiver) = sink.broker() else { return };
    let (url, local) = (&receiver.connection.url, &config.mqtt.connection.url);
    if !is_one_broker(url, local) {
        return;
    }
    let section = sink.section();
    // Where the addresses are spelled alike, these were reported with the file.
    if !url.is_same_listener(local) {
        for (key, invalid) in sedge_core::config::on_one_broker(receiver, &config.mqtt, &config.node) {
            let what = format!("{url} is the broker of mqtt.url: {}", invalid.what);
            warn(&format!("{section}.{key}"), &what, invalid.hint.as_deref().unwrap_or_default());
        }
    }
    for (_, manifest) in functions {
        if let Some((filter, sent)) = heard(manifest, &receiver.prefix(&config.node.name)) {
            let what = format!(
                "function {} receives {filter}, and so what this board sends to the sink {} on the same broker ({sent}): a \
                 loop, ended only after functions.max_hops",
                manifest.name, sink.name
            );
            let fix = "subscribe to other topics, or choose another prefix or broker";
            warn(&format!("{section}.topic_prefix"), &what, fix);
        }
    }
}

/// Whether both addresses lead to one listener, however they are spelled.
pub(super) fn is_one_broker(one: &Endpoint, other: &Endpoint) -> bool {
    if one.is_same_listener(other) {
        return true;
    }
    if one.port() != other.port() {
        return false;
    }
    let (one, other) = (resolve(one), resolve(other));
    one.intersection(&other).next().is_some()
}

/// IP addresses of a host. All addresses of this machine count as one. None if the name cannot be resolved in time.
fn resolve(endpoint: &Endpoint) -> BTreeSet<IpAddr> {
    let (host, port) = (endpoint.host().to_owned(), endpoint.port());
    let (resolved, receiver) = mpsc::sync_channel(1);
    std::thread::spawn(move || {
        let addresses = (host.as_str(), port).to_socket_addrs();
        let _ = resolved.send(addresses.map(Iterator::collect::<Vec<_>>).unwrap_or_default());
    });
    let addresses = receiver.recv_timeout(RESOLVE_TIMEOUT).unwrap_or_default();
    let canonical = |ip: IpAddr| if is_own(ip) { Ipv4Addr::LOCALHOST.into() } else { ip.to_canonical() };
    addresses.into_iter().map(|address| canonical(address.ip())).collect()
}

/// Whether an address is one of this machine: only such addresses can be bound.
fn is_own(ip: IpAddr) -> bool {
    ip.is_loopback() || ip.is_unspecified() || UdpSocket::bind((ip, 0)).is_ok()
}

/// First filter of a function that hears topics with this prefix, and the topics.
pub(super) fn heard<'a>(manifest: &'a Manifest, prefix: &str) -> Option<(&'a TopicFilter, String)> {
    let filter = manifest.subscribe.iter().find(|filter| hears(filter, prefix))?;
    Some((filter, format!("{prefix}...")))
}

/// Whether a filter matches any topic that begins with this prefix, whose last level may be incomplete.
fn hears(filter: &TopicFilter, prefix: &str) -> bool {
    let mut levels = filter.as_str().split('/');
    let (whole, begun) = prefix.rsplit_once('/').map_or((None, prefix), |(whole, begun)| (Some(whole), begun));
    for level in whole.into_iter().flat_map(|whole| whole.split('/')) {
        match levels.next() {
            Some("#") => return true,
            Some(wanted) if wanted == "+" || wanted == level => {}
            _ => return false,
        }
    }
    levels.next().is_some_and(|wanted| matches!(wanted, "#" | "+") || wanted.starts_with(begun))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_that_hears_the_prefix_of_upstream_is_found() {
        let check = |filter: &str, prefix: &str| hears(&filter.parse().unwrap(), prefix);
        for (filter, prefix) in [
            ("#", "up/"),
            ("up/#", "up/"),
            ("+/c", "up/"),
            ("up/+", "up/"),
            ("up7/x", "up"),
            ("a", ""),
            ("+/+/c", "a/b/"),
        ] {
            assert!(check(filter, prefix), "{filter} hears {prefix}");
        }
        for (filter, prefix) in
            [("a/#", "up/"), ("up", "up/"), ("+", "up/"), ("+/b", "up/a/"), ("sensors/#", "up"), ("a/b/c", "a/x/")]
        {
            assert!(!check(filter, prefix), "{filter} does not hear {prefix}");
        }
    }

    #[test]
    fn another_spelling_does_not_hide_that_it_is_one_broker() {
        let check = |one: &str, other: &str| is_one_broker(&one.parse().unwrap(), &other.parse().unwrap());
        assert!(check("mqtt://localhost", "mqtt://127.0.0.1:1883"));
        assert!(check("mqtt://LOCALHOST", "mqtt://127.0.0.2"));
        assert!(check("mqtt://localhost", "mqtt://0.0.0.0"));
        assert!(check("mqtt://[::1]:7", "mqtt://[::ffff:127.0.0.1]:7"));
        assert!(!check("mqtt://localhost:1883", "mqtt://localhost:1884"));
        assert!(!check("mqtt://localhost", "mqtt://192.0.2.1"));
    }
}
