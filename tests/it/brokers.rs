//! TLS, client certificates and passwords; several hosts at one broker; timers.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::harness::daemon::{Daemon, Setup};
use crate::harness::eventually;
use crate::harness::guest::{guest, variant};
use crate::harness::mosquitto::{Mosquitto, free_port};
use crate::harness::upstream::Upstream;
use crate::harness::wire::Publish;

/// Password file of the user `board` (`correct horse`), as written by `mosquitto_passwd`.
const PASSWORDS: &str = "board:$7$101$O1Oa08i6KBYntNod$d212amMjQZODNChCmb3Q+6eEE9ndsLN1Za2dD6HjjVuhobWhJIFenQvf3WvM1MCQr5/1ibl+zTxrhbScgo66FQ==\n";

/// Only the user `board` may read the topics of sensors.
const RULES: &str = "topic write count/#\ntopic read up/#\n\nuser board\ntopic readwrite #\n";

/// Certificates for `localhost` made with openssl; shared with the tests of the webhook.
fn certificate(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../daemon/src/sinks/testdata").join(name)
}

#[test]
fn with_tls_a_client_certificate_and_a_password_it_is_known_and_without_one_of_them_it_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path
    };
    let port = free_port();
    let broker = Mosquitto::start_with(&format!(
        "password_file {}\nacl_file {}\nlistener {port} 127.0.0.1\ncafile {}\ncertfile {}\nkeyfile {}\nrequire_certificate true",
        file("passwords", PASSWORDS).display(),
        file("rules", RULES).display(),
        certificate("ca.pem").display(),
        certificate("server.pem").display(),
        certificate("server.key").display(),
    ));
    let url = format!("mqtts://localhost:{port}");
    let known = |setup: Setup, section: &'static str| {
        setup
            .set(section, "username = \"board\"")
            .set(section, format!("password_file = {:?}", file("password", "correct horse\n")))
            .set(section, format!("ca_file = {:?}", certificate("ca.pem")))
            .set(section, format!("cert_file = {:?}", certificate("client.pem")))
            .set(section, format!("key_file = {:?}", certificate("client.key")))
    };
    let setup = || known(Setup::new(url.clone()).function(&guest("count")), "mqtt");

    let upstream = Upstream::collect_filter(broker.port, "upstream", "up/#");
    let both = known(setup().upstream(url.clone()).set("upstream", "topic_prefix = \"up/\""), "upstream");
    let daemon = Daemon::start(&both);
    broker.await_daemon();
    broker.client("sensor").publish_all((1..=10).map(|n| Publish::new("count/a", n.to_string()))).unwrap();
    let all = eventually(Duration::from_secs(20), || upstream.count() == 11);
    assert!(all, "{:?}; log:\n{}", upstream.received(), daemon.log());
    drop(daemon);

    let wrong = file("wrong", "incorrect horse\n");
    let other_roots = format!("ca_file = {:?}", certificate("client.pem"));
    let mut nameless = setup();
    nameless.settings.retain(|(_, line)| !line.starts_with("cert_file") && !line.starts_with("key_file"));
    for (what, setup) in [
        ("a wrong password", setup().set("mqtt", format!("password_file = {wrong:?}"))),
        ("a broker that somebody else vouches for", setup().set("mqtt", other_roots)),
        ("no certificate", nameless),
    ] {
        let daemon = Daemon::start(&setup);
        let told = eventually(Duration::from_secs(20), || daemon.log().contains("not connected to the broker"));
        assert!(told, "{what}; log:\n{}", daemon.log());
        assert!(!daemon.log().contains("connected to the broker session_present"), "{what}; log:\n{}", daemon.log());
        assert_eq!(daemon.metric_with("sedge_connected", "broker"), 0.0, "{what}");
    }
}

#[test]
fn a_pinned_certificate_is_accepted_and_no_other() {
    // Of server.pem: openssl x509 -noout -fingerprint -sha256
    const PIN: &str = "0ccf21e732ba1b4f6d3bd4a21007fd323b88e902009a4fa97e0e3280e455f48c";
    let port = free_port();
    let broker = Mosquitto::start_with(&format!(
        "listener {port} 127.0.0.1\ncertfile {}\nkeyfile {}",
        certificate("server.pem").display(),
        certificate("server.key").display(),
    ));
    // By an address that the certificate does not name.
    let setup = |pin: &str| {
        let setup = Setup::new(format!("mqtts://127.0.0.1:{port}")).function(&guest("count"));
        setup.set("mqtt", format!("tls_pin_sha256 = {pin:?}"))
    };
    let daemon = Daemon::start(&setup(PIN));
    broker.await_daemon();
    assert_eq!(daemon.metric_with("sedge_connected", "broker"), 1.0);
    drop(daemon);

    let other = PIN.replace(&PIN[..8], "00000000");
    let daemon = Daemon::start(&setup(&other));
    let told = eventually(Duration::from_secs(20), || daemon.log().contains(PIN));
    assert!(told, "the digest that came is not told; log:\n{}", daemon.log());
    assert_eq!(daemon.metric_with("sedge_connected", "broker"), 0.0);
}

#[test]
fn brokers_are_reached_over_websocket_with_and_without_tls() {
    let (plain, tls) = (free_port(), free_port());
    let broker = Mosquitto::start_with(&format!(
        "listener {plain} 127.0.0.1\nprotocol websockets\n\
         listener {tls} 127.0.0.1\nprotocol websockets\ncertfile {}\nkeyfile {}",
        certificate("server.pem").display(),
        certificate("server.key").display(),
    ));
    let upstream = Upstream::collect_filter(broker.port, "upstream", "up/#");
    let setup = Setup::new(format!("ws://127.0.0.1:{plain}/mqtt"))
        .upstream(format!("wss://localhost:{tls}/mqtt"))
        .set("upstream", format!("ca_file = {:?}", certificate("ca.pem")))
        .set("upstream", "topic_prefix = \"up/\"")
        .function(&guest("count"));
    let daemon = Daemon::start(&setup);
    broker.await_daemon();
    broker.client("sensor").publish_all((1..=200).map(|n| Publish::new("count/a", n.to_string()))).unwrap();
    let all = eventually(Duration::from_secs(20), || upstream.count() >= 201);
    assert!(all, "{} of 201; log:\n{}", upstream.count(), daemon.log());
    assert_eq!(daemon.metric("sedge_messages_received_total"), 200.0);
}

#[test]
fn an_address_of_another_service_is_reported_with_the_fix() {
    let broker = Mosquitto::start();
    let daemon = Daemon::start(&Setup::new(format!("ws://127.0.0.1:{}/mqtt", broker.port)));
    let told = eventually(Duration::from_secs(30), || daemon.log().contains("check port and path of the address"));
    assert!(told, "log:\n{}", daemon.log());
}

#[test]
fn hosts_of_one_share_group_handle_each_message_once() {
    let broker = Mosquitto::start();
    let cloud = Mosquitto::start();
    let upstream = Upstream::collect_filter(cloud.port, "upstream", "up/#");
    let daemons = ["one", "two"].map(|name| {
        let setup = Setup::new(broker.url()).upstream(cloud.url()).function(&guest("relay"));
        let setup = setup.set("node", format!("name = {name:?}")).set("mqtt", "share_group = \"pool\"");
        let daemon = Daemon::start(&setup);
        let line = format!(": sedge-{name} 1 $share/pool/relay/#");
        assert!(eventually(Duration::from_secs(20), || broker.log().contains(&line)), "{}", broker.log());
        daemon
    });
    let readings = (0..400).map(|n| Publish::new(&format!("relay/{}", n % 20), n.to_string()));
    broker.client("sensors").publish_all(readings).unwrap();
    let all = eventually(Duration::from_secs(30), || upstream.count() >= 400);
    assert!(all, "{} of 400 upstream", upstream.count());
    let received = upstream.received();
    let distinct: BTreeSet<String> = received.iter().map(|message| message.text()).collect();
    assert_eq!((distinct.len(), received.len()), (400, 400), "each is handled once");
    let shares = daemons.map(|daemon| daemon.metric("sedge_messages_received_total"));
    assert_eq!(shares[0] + shares[1], 400.0);
    assert!(shares[0] > 0.0 && shares[1] > 0.0, "{shares:?}");
}

#[test]
fn a_timer_calls_its_function_again_and_again_with_state_of_its_own() {
    let broker = Mosquitto::start();
    let cloud = Mosquitto::start();
    let upstream = Upstream::collect(cloud.port);
    let folder = tempfile::tempdir().unwrap();
    let ticking = variant(&guest("count"), folder.path(), "ticking", "nothing/#", |manifest| {
        format!("every = \"100ms\"\n{manifest}")
    });
    let daemon = Daemon::start(&Setup::new(broker.url()).upstream(cloud.url()).function(&ticking));
    let ticks = || {
        upstream.received().into_iter().filter(|message| message.topic == "up/board/$timer/ticking").collect::<Vec<_>>()
    };
    assert!(eventually(Duration::from_secs(20), || ticks().len() >= 5), "log:\n{}", daemon.log());
    let counted: Vec<String> = ticks().iter().take(5).map(|tick| tick.text()).collect();
    assert_eq!(counted, (1..=5).map(|n| format!(" {n}")).collect::<Vec<_>>(), "the payload is empty");
    assert_eq!(daemon.metric("sedge_messages_received_total"), 0.0, "a tick is no message of the broker");
}
