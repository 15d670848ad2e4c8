//! `sedge push DIR`: builds a function, signs it, gives its module to the broker and follows the boards until it is active.

mod bundle;
mod chunks;
mod plan;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::follow::{Follow, Goal, OrderOutcome};
use super::order::{self, RETAINED_GRACE, target_json, with_json_answer};
use super::remote::BrokerArgs;
use super::session::Session;
use super::signing::{KeyArgs, Signer, TargetArgs, WaitArgs};
use crate::deploy::payload::{CHUNK_BYTES, Change, DEFAULT_CHUNK_BYTES, Install};
use crate::manifest::TrialMode;
use crate::sandbox::Isa;
use bundle::{Bundle, Wanted};

#[derive(Debug, Args)]
pub struct PushArgs {
    /// The function's folder. With a Cargo.toml in it, it is built first
    pub dir: PathBuf,
    #[command(flatten)]
    pub target: TargetArgs,
    #[command(flatten)]
    pub key: KeyArgs,
    /// Show what would change on the boards, and do nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Serial number instead of that in function.toml, or of the time where there is none
    #[arg(long, value_name = "N")]
    pub serial: Option<u64>,
    /// How the new version proves itself, instead of trial.mode in function.toml
    #[arg(long)]
    pub mode: Option<Mode>,
    /// Compile it here as well, for boards without a compiler: aarch64, x86_64, or pulley32 for 32-bit ARM; several with
    /// commas. They run it unchecked, and only if the key may send such code
    #[arg(long, value_name = "TARGETS", value_delimiter = ',')]
    pub code: Vec<Isa>,
    /// Send that code alone, to boards that all run one of its targets
    #[arg(long, requires = "code")]
    pub code_only: bool,
    /// Size of the pieces that the module is sent in
    #[arg(long, value_name = "BYTES", default_value_t = DEFAULT_CHUNK_BYTES,
        value_parser = clap::value_parser!(u32).range(i64::from(*CHUNK_BYTES.start())..=i64::from(*CHUNK_BYTES.end())))]
    pub chunk_size: u32,
    /// When it is active everywhere, remove its module from the broker. Boards that come later cannot fetch it then
    #[arg(long, conflicts_with_all = ["no_wait", "dry_run"])]
    pub prune: bool,
    /// The same for every module that neither a board's report nor an order on the broker names
    #[arg(long, conflicts_with_all = ["no_wait", "dry_run"])]
    pub prune_unused: bool,
    #[command(flatten)]
    pub wait: WaitArgs,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub broker: BrokerArgs,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Mode {
    Live,
    Shadow,
}

/// Exit code 0 when it is active on every board of the target, or, of a dry run, when it could be ordered.
pub fn run(args: &PushArgs) -> anyhow::Result<ExitCode> {
    with_json_answer(args.json, || {
        let signer = match args.dry_run {
            true => None,
            false => Some(args.key.load()?),
        };
        let wanted = Wanted { targets: &args.code, has_component: !args.code_only, chunk_size: args.chunk_size };
        let mut bundle = Bundle::build(&args.dir, &wanted)?;
        if let Some(mode) = args.mode {
            bundle.set_mode(mode);
        }
        super::block_on(async {
            let deadline = Instant::now() + args.wait.timeout();
            // Without an answer nothing is lost but a check, so a push does not wait for slow brokers.
            let quiet = if args.dry_run { RETAINED_GRACE } else { Duration::ZERO };
            let function = bundle.manifest.name.clone();
            let mut session = Session::open(&args.broker, args.target.target(), function, deadline, quiet).await?;
            let result = match &signer {
                None => dry_run(args, bundle, &session),
                Some(signer) => push(args, bundle, &mut session, signer).await,
            };
            session.remote.close().await;
            result
        })
    })
}

fn dry_run(args: &PushArgs, mut bundle: Bundle, session: &Session) -> anyhow::Result<(bool, Value)> {
    bundle.manifest.serial = plan::serial(args.serial, &bundle, session)?;
    let previews = plan::previews(&bundle, session);
    if !args.json {
        for part in &bundle.parts {
            println!("{:<10} {} bytes in {} chunks", part.name(), part.module.size, part.module.chunks.len());
        }
        previews.iter().flat_map(|preview| preview.lines(&bundle)).for_each(|line| println!("{line}"));
        if previews.is_empty() {
            println!("no board of {} is known to the broker", session.target);
        }
    }
    let (module, code) = bundle.json();
    let answer = json!({
        "ok": true,
        "dry_run": true,
        "function": &*session.function,
        "version": &*bundle.manifest.version,
        "serial": bundle.manifest.serial,
        "target": target_json(&session.target),
        "module": module,
        "code": code,
        "nodes": previews,
    });
    Ok((true, answer))
}

async fn push(
    args: &PushArgs,
    bundle: Bundle,
    session: &mut Session,
    signer: &Signer,
) -> anyhow::Result<(bool, Value)> {
    let goal = goal(&bundle);
    let order = plan::order(args.serial, bundle, session, signer)?;
    let plan::Plan { order, envelope, bundle, is_new } = order;
    let version = &bundle.manifest.version;
    let again = if is_new { "" } else { ", ordered before" };
    let what = format!("{} {version}, serial {}, to {}{again}", session.function, order.serial, session.target);
    session.progress.print("push", &what);

    let kept = chunks::retained(session, &bundle).await?;
    let missing = kept.missing(session, &bundle);
    if missing.is_empty() {
        session.progress.print("chunks", &format!("the broker has all {}", bundle.chunks()));
    } else {
        session.publish("chunks", &missing).await?;
    }
    let trial = &bundle.manifest.trial;
    let mut follow = Follow::new(session, order.serial, goal);
    follow.trial_secs = Some(trial.secs);
    if let Change::Install(install) = &order.change {
        follow.install = Some(Install::clone(install));
    }
    order::publish(session, &envelope).await?;
    let outcome = match args.wait.no_wait {
        true => None,
        false => Some(follow.run(session).await?),
    };
    let mut removed = 0;
    if outcome.as_ref().is_some_and(OrderOutcome::is_ok) {
        removed = prune(args, session, &bundle, kept).await?;
    }

    let mut answer = order::answer(session, &order, signer, outcome.as_ref(), args.json);
    answer["version"] = json!(&**version);
    (answer["module"], answer["code"]) = bundle.json();
    answer["chunks"] = json!({ "sent": missing.len(), "kept": bundle.chunks() - missing.len() });
    answer["removed"] = json!(removed);
    Ok((outcome.is_none_or(|outcome| outcome.is_ok()), answer))
}

fn goal(bundle: &Bundle) -> Goal {
    let trial = &bundle.manifest.trial;
    if trial.mode == TrialMode::Shadow && trial.differences.is_none() { Goal::SHADOWING } else { Goal::INSTALLED }
}

/// Removes chunks from the broker, and says how many.
async fn prune(
    args: &PushArgs,
    session: &mut Session,
    bundle: &Bundle,
    kept: chunks::RetainedChunks,
) -> anyhow::Result<usize> {
    let mut topics = Vec::new();
    if args.prune {
        topics.extend(kept.all(session, bundle));
    }
    if args.prune_unused {
        topics.extend(chunks::unused(session, &args.broker.base(), bundle).await?);
    }
    if topics.is_empty() {
        return Ok(0);
    }
    let messages: Vec<_> = topics.into_iter().map(|topic| (topic, bytes::Bytes::new())).collect();
    if let Err(error) = session.publish("prune", &messages).await {
        bail!("it is active, but its chunks could not be removed: {error:#}");
    }
    Ok(messages.len())
}
