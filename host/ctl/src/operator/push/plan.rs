//! The order of a push: a new one, or the retained one of an earlier push; and a preview of its changes.

use std::sync::Arc;

use anyhow::bail;
use serde::Serialize;
use serde_json::{Value, json};

use crate::operator::changes::{self, Kind, ManifestChange};
use crate::operator::push::bundle::Bundle;
use crate::operator::session::Session;
use crate::operator::signing::Signer;
use crate::printable;
use sedge_core::deploy::payload::{self, Order};
use sedge_core::deploy::report::{DeployState, Version};

pub(crate) struct Plan {
    pub(crate) order: Order,
    pub(crate) envelope: Vec<u8>,
    pub(crate) bundle: Bundle,
    /// Whether the broker does not retain it yet.
    pub(crate) is_new: bool,
}

/// Refuses what a board of the target would refuse, as far as its status says, and other code under a version that it has.
pub(crate) fn check(bundle: &Bundle, session: &Session) -> anyhow::Result<()> {
    let install = bundle.install();
    for node in session.members(None) {
        let presence = session.boards.get(&node).and_then(|board| board.presence.as_ref());
        if let Some(limits) = presence.and_then(|presence| presence.limits.as_ref())
            && let Err(refusal) = limits.check(&install)
        {
            bail!("board {node} would refuse it: {refusal}. Nothing was sent; --force sends it all the same");
        }
        let Some(report) = session.report(&node) else { continue };
        let active = report.active.as_ref().map(|active| &active.version);
        let version = &*bundle.manifest.version;
        let is_other = |installed: &&Version| {
            // The digest of native code says nothing about the component that it was compiled from.
            let other = bundle.component().is_some_and(|module| module.digest != installed.digest);
            installed.version == version && !installed.native_code && other
        };
        if active.into_iter().chain(&report.previous).any(|installed| is_other(&installed)) {
            bail!(
                "board {node} has version {version} of {} with other code: raise version in {}. Nothing was sent; --force \
                 sends it all the same",
                session.function,
                sedge_core::manifest::FILE_NAME
            );
        }
    }
    Ok(())
}

/// Reuses the retained order of an earlier push of the same bundle, byte for byte: boards that have it change nothing, and
/// the others continue.
pub(crate) fn order(
    serial: Option<u64>,
    mut bundle: Bundle,
    session: &Session,
    signer: &Signer,
) -> anyhow::Result<Plan> {
    let wanted = serial.unwrap_or(bundle.manifest.serial);
    if let Some(envelope) = &session.retained_order
        && let Some(order) = signer.verify_own(envelope)
        && is_reusable(&order, wanted, &mut bundle, session)
    {
        return Ok(Plan { order, envelope: envelope.to_vec(), bundle, is_new: false });
    }
    bundle.manifest.serial = self::serial(serial, &bundle, session)?;
    let change = payload::OrderChange::Install(Box::new(bundle.install()));
    let order = signer.order(&session.function, &session.target, bundle.manifest.serial, change, session.now);
    let envelope = signer.sign(&order);
    Ok(Plan { order, envelope, bundle, is_new: true })
}

/// Whether the order is for this bundle, has not expired, and is not over on any board. If so, the bundle takes its serial.
fn is_reusable(order: &Order, wanted: u64, bundle: &mut Bundle, session: &Session) -> bool {
    let payload::OrderChange::Install(install) = &order.change else { return false };
    let before = std::mem::replace(&mut bundle.manifest.serial, order.serial);
    let is_same = (wanted == 0 || wanted == order.serial)
        && order.target == session.target
        && order.expires_at_ms > session.now.unix_ms
        && **install == bundle.install();
    let is_over = session.members(None).iter().any(|node| {
        session.report(node).is_some_and(|report| match report.serial {
            // A serial that the manifest fixes is not replaced: the same order would fail again.
            Some(serial) if serial == order.serial => wanted == 0 && failed(report.state),
            Some(serial) => serial > order.serial,
            None => false,
        })
    });
    if !is_same || is_over {
        bundle.manifest.serial = before;
    }
    is_same && !is_over
}

fn failed(state: DeployState) -> bool {
    state.is_final() && state != DeployState::Active
}

/// Returns the serial of the command line, of the manifest or of the time. It is above those that boards have reported.
pub(crate) fn serial(named: Option<u64>, bundle: &Bundle, session: &Session) -> anyhow::Result<u64> {
    let wanted = named.unwrap_or(bundle.manifest.serial);
    match session.boards.highest_accepted(&session.target, &session.function) {
        _ if wanted == 0 => {
            let used = session.highest_used_serial();
            Ok(session.now.unix_ms.max(used.map_or(0, |used| used.saturating_add(1))))
        }
        Some((highest, node)) if wanted <= highest => bail!(
            "board {node} has taken serial {highest} of {}, and this push has {wanted}: set serial = {} in {}, or \
             remove it",
            session.function,
            highest.saturating_add(1),
            sedge_core::manifest::FILE_NAME
        ),
        _ => Ok(wanted),
    }
}

/// The changes on one board.
#[derive(Debug, Serialize)]
pub(crate) struct Preview {
    pub(crate) node: String,
    /// Version and serial of the active version.
    pub(crate) from: Option<Value>,
    pub(crate) changes: Vec<ManifestChange>,
}

pub(crate) fn previews(bundle: &Bundle, session: &Session) -> Vec<Preview> {
    let new = serde_json::to_value(&bundle.manifest).unwrap_or_default();
    let preview = |node: Arc<str>| {
        let active = session.report(&node).and_then(|report| report.active.as_ref());
        let mut changes = changes::changes(active.map(|active| &active.manifest), &new);
        let digest = active.map(|active| active.version.digest);
        if digest.is_none_or(|digest| bundle.digests().all(|new| new != digest)) {
            // Of several kinds of code, the board chooses.
            let to = bundle.digests().next().map(|digest| json!(digest.to_string()));
            let from = digest.map(|digest| json!(digest.to_string()));
            changes.push(ManifestChange { key: "module".into(), kind: Kind::Value { from, to } });
        }
        let from = active.map(|active| json!({ "version": active.version.version, "serial": active.version.serial }));
        Preview { node: node.to_string(), from, changes }
    };
    session.members(None).into_iter().map(preview).collect()
}

impl Preview {
    pub(crate) fn lines(&self, bundle: &Bundle) -> Vec<String> {
        let from = match &self.from {
            Some(from) => {
                format!("{} (serial {})", printable(from["version"].as_str().unwrap_or_default()), from["serial"])
            }
            None => "nothing".into(),
        };
        let manifest = &bundle.manifest;
        let to = format!("{} (serial {})", manifest.version, manifest.serial);
        let mut lines = vec![format!("{}: {} {from} -> {to}", self.node, manifest.name)];
        lines.extend(self.changes.iter().flat_map(ManifestChange::lines).map(|line| format!("  {line}")));
        lines
    }
}
