//! `sedge push DIR`: builds and signs a function, publishes its module and follows the boards until it is active.

mod bundle;
mod chunks;
mod plan;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use super::broker::BrokerArgs;
use super::follow::{self, Follow, OrderOutcome};
use super::order::{self, RETAINED_GRACE, target_json, with_json_answer};
use super::session::Session;
use super::signing::{KeyArgs, Signer, TargetArgs, WaitArgs};
use crate::replay::{self, Replay};
use crate::terminal::say;
use bundle::Bundle;
use chunks::RetainedChunks;
use sedge_core::deploy::payload::{CHUNK_BYTES, DEFAULT_CHUNK_BYTES, Install, OrderChange};
use sedge_core::isa::Isa;
use sedge_core::manifest::TrialMode;

/// Messages that differ from a recording, as far as they are shown.
const SHOWN_DIFFERENCES: usize = 5;

#[derive(Debug, Args)]
pub struct PushArgs {
    /// Folder of the function. It is built first if it holds a Cargo.toml
    dir: PathBuf,
    #[command(flatten)]
    target: TargetArgs,
    #[command(flatten)]
    key: KeyArgs,
    /// Show what would change on the boards, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Send it although a check on this computer fails: a limit of a board, a name that looks mistyped, or other code
    /// under a version that is installed
    #[arg(long)]
    force: bool,
    /// Run this recording with the function first, and send nothing if more messages differ than --allow permits; repeatable
    #[arg(long, value_name = "FILE")]
    replay: Vec<PathBuf>,
    /// Messages of each recording that may differ
    #[arg(long, value_name = "N", default_value_t = 0, requires = "replay")]
    allow: u64,
    /// Serial instead of the one in function.toml. Without either, the current time
    #[arg(long, value_name = "N")]
    serial: Option<u64>,
    /// Kind of trial, instead of trial.mode in function.toml
    #[arg(long)]
    mode: Option<Mode>,
    /// Add native code for boards without a compiler: aarch64, x86_64, or pulley32 for 32-bit ARM; separated by
    /// commas. Boards cannot verify it, and accept it only from keys that may send native code
    #[arg(long, value_name = "TARGETS", value_delimiter = ',')]
    code: Vec<Isa>,
    /// Send the native code without the module, to boards that all run one of its targets
    #[arg(long, requires = "code")]
    code_only: bool,
    /// Size of the chunks that the module is sent in
    #[arg(long, value_name = "BYTES", default_value_t = DEFAULT_CHUNK_BYTES,
        value_parser = clap::value_parser!(u32).range(i64::from(*CHUNK_BYTES.start())..=i64::from(*CHUNK_BYTES.end())))]
    chunk_size: u32,
    /// Remove the module from the broker once it is active everywhere. Boards that connect later cannot fetch it then
    #[arg(long, conflicts_with_all = ["no_wait", "dry_run"])]
    prune: bool,
    /// Remove every module from the broker that neither a board's report nor an order names
    #[arg(long, conflicts_with_all = ["no_wait", "dry_run"])]
    prune_unused: bool,
    #[command(flatten)]
    wait: WaitArgs,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    broker: BrokerArgs,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Mode {
    Live,
    Shadow,
}

/// Returns exit code 0 when the function is active on every board of the target, or a dry run found no obstacle.
pub fn run(args: &PushArgs) -> anyhow::Result<ExitCode> {
    with_json_answer(args.json, || {
        let signer = match args.dry_run {
            true => None,
            false => Some(args.key.load()?),
        };
        let replayed = args.replay.iter().map(|file| replayed(args, file)).collect::<anyhow::Result<Vec<_>>>()?;
        let mut bundle = Bundle::build(&args.dir, &args.code, args.code_only, args.chunk_size)?;
        if let Some(mode) = args.mode {
            bundle.set_mode(mode);
        }
        crate::block_on(async {
            // A push does without the grace: late reports only make its checks weaker.
            let grace = if args.dry_run { RETAINED_GRACE } else { Duration::ZERO };
            let (target, function) = (args.target.target(), bundle.manifest.name.clone());
            let mut session = Session::open(
                &args.broker,
                target,
                function,
                sedge_sandbox::clock::now(false),
                args.wait.timeout(),
                grace,
            )
            .await?;
            if !args.force {
                session.check_name()?;
                plan::check(&bundle, &session)?;
            }
            let result = match &signer {
                None => dry_run(args, bundle, &session),
                Some(signer) => push(args, bundle, &mut session, signer).await,
            };
            session.client.close().await;
            let (ok, mut answer) = result?;
            if !replayed.is_empty() {
                answer["replayed"] = json!(replayed);
            }
            Ok((ok, answer))
        })
    })
}

/// Runs a recording with the function that is to be sent. Fails if more differs than is allowed.
fn replayed(args: &PushArgs, file: &Path) -> anyhow::Result<Value> {
    let report = replay::replay(file, &args.dir, &Replay { show: SHOWN_DIFFERENCES, ..Replay::default() })?;
    if report.different > args.allow {
        if !args.json {
            report.print_differences();
        }
        bail!(
            "{}: {}, and --allow permits {}: nothing was sent; `sedge replay` shows all of them",
            file.display(),
            report.verdict(),
            args.allow
        );
    }
    if !args.json {
        say!("replay     {}: {}", file.display(), report.verdict());
    }
    Ok(json!({ "recording": report.digest(), "messages": report.messages, "different": report.different }))
}

fn dry_run(args: &PushArgs, mut bundle: Bundle, session: &Session) -> anyhow::Result<(bool, Value)> {
    bundle.manifest.serial = plan::serial(args.serial, &bundle, session)?;
    let previews = plan::previews(&bundle, session);
    if !args.json {
        for part in &bundle.parts {
            say!("{:<10} {} bytes in {} chunks", part.name(), part.module.size, part.module.chunks.len());
        }
        previews.iter().flat_map(|preview| preview.lines(&bundle)).for_each(|line| say!("{line}"));
        if previews.is_empty() {
            say!("the broker knows no board of {}", session.target);
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
    let trial = &bundle.manifest.trial;
    let goal = match trial.mode {
        TrialMode::Shadow if trial.differences.is_none() => follow::SHADOWING,
        _ => follow::INSTALLED,
    };
    let plan::Plan { order, envelope, bundle, is_new } = plan::order(args.serial, bundle, session, signer)?;
    let version = &bundle.manifest.version;
    let again = if is_new { "" } else { ", ordered before" };
    let what = format!("{} {version}, serial {}, to {}{again}", session.function, order.serial, session.target);
    session.progress.print("push", &what);

    let retained = RetainedChunks::read(session, &bundle).await?;
    let missing = retained.missing(session, &bundle);
    if missing.is_empty() {
        session.progress.print("chunks", &format!("the broker has all {}", bundle.chunks()));
    } else {
        session.publish("chunks", &missing).await?;
    }
    let mut follow = Follow::new(session, order.serial, goal);
    follow.trial_secs = Some(bundle.manifest.trial.secs);
    if let OrderChange::Install(install) = &order.change {
        follow.install = Some(Install::clone(install));
    }
    let outcome = order::publish(session, &envelope, follow, &args.wait).await?;
    let mut removed = 0;
    if outcome.as_ref().is_some_and(OrderOutcome::is_ok) {
        removed = prune(args, session, &bundle, retained).await?;
    }

    let mut answer = order::answer(session, &order, signer, outcome.as_ref(), args.json);
    answer["version"] = json!(&**version);
    (answer["module"], answer["code"]) = bundle.json();
    answer["chunks"] = json!({ "sent": missing.len(), "kept": bundle.chunks() - missing.len() });
    answer["removed"] = json!(removed);
    Ok((outcome.is_none_or(|outcome| outcome.is_ok()), answer))
}

/// Removes chunks from the broker as `--prune` and `--prune-unused` want. Returns their number.
async fn prune(
    args: &PushArgs,
    session: &mut Session,
    bundle: &Bundle,
    retained: RetainedChunks,
) -> anyhow::Result<usize> {
    let mut topics = Vec::new();
    if args.prune {
        topics.extend(retained.into_topics(session, bundle));
    }
    if args.prune_unused {
        topics.extend(chunks::unused(session, &args.broker.base(), bundle).await?);
    }
    if topics.is_empty() {
        return Ok(0);
    }
    let messages: Vec<_> = topics.into_iter().map(|topic| (topic, bytes::Bytes::new())).collect();
    if let Err(error) = session.publish("prune", &messages).await {
        bail!("the function is active, but its chunks could not be removed: {error:#}");
    }
    Ok(messages.len())
}
