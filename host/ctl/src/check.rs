//! `sedge check`: all problems of a configuration and its functions, or a summary of what would run.

mod loops;
mod settings;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use super::{ConfigArgs, EXIT_CONFIG, print_problems, runner, terminal};
use sedge_core::config::problem::{Invalid, Location, Severity};
use sedge_core::config::{Config, Problem, Problems, Sink, SinkShare, UPSTREAM, Upstream};
use sedge_core::deploy::Source;
use sedge_core::manifest::{Manifest, StateFull, StateScope};
use sedge_sandbox::compiler::Compiler;
use sedge_sandbox::folder::InstallError;
use sedge_sandbox::machine::memory_bytes;
use sedge_sandbox::script::archive;

#[derive(Debug, Args)]
pub struct CheckArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub fn run(args: &CheckArgs) -> anyhow::Result<ExitCode> {
    let (config, mut problems) = Config::inspect(&args.config.path(), &sedge_sandbox::machine::MACHINE);
    let (functions, more) = config.functions.load(&config.sinks, &sedge_sandbox::machine::MACHINE);
    problems.extend(more);
    for (dir, manifest) in &functions {
        if let Err((key, invalid)) = check_function(dir, manifest, config.functions.native_code) {
            problems.push(Problem::error(Location::whole(dir.join(sedge_core::manifest::FILE_NAME)), key, invalid));
        }
    }
    if !problems.has_errors() {
        let manifests: Vec<&Manifest> = functions.iter().map(|(_, manifest)| manifest).collect();
        problems.extend(settings::check(&config, &manifests, &args.config.path()));
    }
    let has_errors = problems.has_errors();
    let mut warn = |key: &str, what: &str, fix: &str| {
        let problem = Problem::error(Location::whole(args.config.path()), key, Invalid::new(what).hint(fix));
        problems.push(Problem { severity: Severity::Warning, ..problem });
    };
    let keys = &config.deploy.keys;
    // With a key to trust, functions can be pushed.
    if functions.is_empty() && keys.is_empty() && !has_errors {
        warn("functions.paths", "no function, so nothing would run", "list the folders of functions");
    }
    if config.http_trigger.listen.is_none()
        && let Some((_, manifest)) = functions.iter().find(|(_, manifest)| !manifest.http.is_empty())
    {
        let what = format!("function {} is woken by requests over HTTP, and none are taken", manifest.name);
        warn("http_trigger.listen", &what, "set it, for example to \"127.0.0.1:8080\"");
    }
    let host = Compiler::capabilities();
    if !host.has_compiler && !host.runs_scripts && !keys.is_empty() && !keys.values().any(|key| key.native_code) {
        let what = "this build has no compiler, and no key may send native code: nothing pushed can run";
        warn("deploy.keys", what, "set native_code = true for a key whose owner may run anything in a worker");
    }

    if !has_errors {
        for sink in &config.sinks.list {
            loops::warn_of_one_broker(sink, &config, &functions, &mut warn);
        }
    }

    let mut out = terminal::out();
    if args.json {
        writeln!(out, "{}", terminal::pretty_json(&as_json(&config, &functions, &problems, memory_bytes())))?;
    } else {
        print_problems(&problems);
        if !problems.has_errors() {
            summary(&mut out, &config, &functions, memory_bytes())?;
        }
    }
    Ok(if problems.has_errors() { ExitCode::from(EXIT_CONFIG) } else { ExitCode::SUCCESS })
}

/// Installs a function in the same child process and with the same limits as the daemon. The error names a key.
fn check_function(dir: &Path, manifest: &Manifest, accepts_code: bool) -> Result<(), (String, Invalid)> {
    let component = |what: String, command: &str| {
        let fix = format!("sedge {command} {}", dir.display());
        Err(("component".into(), Invalid::new(what).hint(fix)))
    };
    let Source { path, is_code } = sedge_sandbox::folder::find(dir, manifest, Compiler::capabilities(), accepts_code);
    if !is_code && Compiler::capabilities().has_compiler && !path.is_file() {
        return component(format!("{} is missing", path.display()), "build");
    }
    match sedge_sandbox::folder::install(dir, manifest.clone(), &Compiler, accepts_code) {
        // A component was compiled. A script shows its mistakes when it is loaded.
        Ok(installed) if archive::is_script(installed.code.bytes()) => {
            match runner::load(&installed, installed.settings().into()) {
                Ok(_) => Ok(()),
                Err(error) => Err(("component".into(), Invalid::new(format!("{:#}", anyhow::Error::from(error))))),
            }
        }
        Ok(_) => Ok(()),
        Err(InstallError::NotGranted { source, .. }) => {
            Err((format!("allow.{}", source.key), Invalid::new(source.to_string())))
        }
        Err(InstallError::NoCompiler { what, .. } | InstallError::TypeScript { what, .. }) => {
            Err(("component".into(), Invalid::new(what)))
        }
        Err(InstallError::Folder { source, .. }) => component(source.to_string(), "compile"),
        Err(error) => component(format!("{:#}", anyhow::Error::from(error)), "build"),
    }
}

fn summary(
    out: &mut impl Write,
    config: &Config,
    functions: &[(PathBuf, Manifest)],
    memory_bytes: u64,
) -> std::io::Result<()> {
    let node = &config.node;
    write!(out, "node       {}, topics under {}/{}/", node.name, node.base_topic, node.name)?;
    match node.groups.is_empty() {
        true => writeln!(out)?,
        false => writeln!(out, ", groups {}", node.groups.join(", "))?,
    }
    let shared = config.mqtt.share_group.as_ref().map_or_else(String::new, |group| format!(", shared by {group}"));
    writeln!(out, "broker     {}{shared}", config.mqtt.connection.url)?;
    if config.sinks.list.is_empty() {
        writeln!(out, "sinks      none: alerts stay on the local broker, data is dropped and counted")?;
    }
    for (sink, share) in config.sinks.list.iter().zip(&config.store.sinks) {
        print_sink(out, config, sink, share)?;
    }
    writeln!(out, "data       {}", node.data_dir.display())?;
    let budget = config.budget(memory_bytes).bytes();
    writeln!(out, "memory     {budget} bytes for messages in processing, of {memory_bytes} that this command may use")?;
    let state = &config.store;
    writeln!(out, "state      {} bytes for all functions (store.state_max_bytes)", state.state_max_bytes)?;
    match config.http.listen {
        Some(listen) => {
            let scheme = if config.http.cert_file.is_some() { "https" } else { "http" };
            writeln!(out, "metrics    {scheme}://{listen}/metrics")?;
        }
        None => writeln!(out, "metrics    off")?,
    }
    if let Some(listen) = config.http_trigger.listen {
        let scheme = if config.http_trigger.cert_file.is_some() { "https" } else { "http" };
        writeln!(out, "requests   {scheme}://{listen}/")?;
    }
    for (dir, manifest) in functions {
        writeln!(out, "\nfunction   {} {}, from {}", manifest.name, manifest.version, dir.display())?;
        for filter in &manifest.subscribe {
            let hears_all = filter.as_str().starts_with(['+', '#']);
            let own = if hears_all {
                format!(", without this board's own topics ({}/...)", node.base_topic)
            } else {
                String::new()
            };
            writeln!(out, "  receives {filter}{own}")?;
        }
        for filter in &manifest.except {
            writeln!(out, "  except   {filter}")?;
        }
        for route in &manifest.http {
            writeln!(out, "  answers  {route}")?;
        }
        if let Some(every) = manifest.every {
            writeln!(out, "  ticks    every {every:?}")?;
        }
        for (name, expressions) in &manifest.at {
            let zone = manifest.zone.as_deref().unwrap_or("the zone of the board");
            let at = expressions.join("; ");
            writeln!(out, "  runs     at {at} in {zone}, as $schedule/{name}")?;
        }
        for filter in &manifest.allow.publish {
            writeln!(out, "  sends    {filter}")?;
        }
        for filter in manifest.allow.forward.iter().flatten() {
            writeln!(out, "  forwards {filter}")?;
        }
        let limits = &manifest.limits;
        let state = match manifest.state {
            StateScope::None => None,
            StateScope::Topic => Some("per topic"),
            StateScope::Function => Some("for all topics"),
        };
        if let Some(scope) = state {
            write!(out, "  state    {scope}, at most {} bytes", limits.state_bytes)?;
            if let Some(total) = limits.state_total_bytes {
                write!(out, "; {total} in all")?;
            }
            let forgets = manifest.state_full == StateFull::ForgetOldest;
            writeln!(out, "{}", if forgets { "; the oldest is forgotten" } else { "" })?;
        }
        writeln!(
            out,
            "  limits   {} fuel, {} ms, {} bytes of memory, {} outputs, {} bytes of output",
            limits.fuel, limits.timeout_ms, limits.memory_bytes, limits.outputs, limits.output_bytes
        )?;
        settings::print(out, config, manifest)?;
    }
    Ok(())
}

fn print_sink(out: &mut impl Write, config: &Config, sink: &Sink, share: &SinkShare) -> std::io::Result<()> {
    let gets = |names: &[String], what| names.contains(&sink.name).then_some(what);
    let gets = [gets(&config.sinks.alerts, "alerts"), gets(&config.sinks.forwards, "forwards")];
    let gets: Vec<&str> = gets.into_iter().flatten().collect();
    let gets = if gets.is_empty() { "what outputs name it for".to_owned() } else { gets.join(" and ") };
    writeln!(out, "sink       {} ({}) {}", sink.name, sink.type_name(), sink.address())?;
    writeln!(out, "  gets     {gets}; at most {} bytes wait for it", share.max_bytes)?;
    let node = &config.node.name;
    match sink.receiver() {
        // Only this sink was there when the default was another.
        Some(receiver) if sink.name == UPSTREAM && receiver.topic_prefix.is_none() => {
            let (default, keep) = (Upstream::default_prefix(node), format!("topic_prefix = \"sedge/{node}/\""));
            writeln!(out, "  prefix   {default}, the default. It was sedge/{node}/ before: {keep} keeps that")
        }
        _ => writeln!(out, "  prefix   {}", sink.prefix(node)),
    }
}

fn sink_json(config: &Config, sink: &Sink, share: &SinkShare) -> Value {
    json!({
        "name": sink.name,
        "type": sink.type_name(),
        "address": sink.address(),
        "prefix": sink.prefix(&config.node.name),
        "alerts": config.sinks.alerts.contains(&sink.name),
        "forwards": config.sinks.forwards.contains(&sink.name),
        "max_bytes": share.max_bytes,
    })
}

fn as_json(config: &Config, functions: &[(PathBuf, Manifest)], problems: &Problems, memory_bytes: u64) -> Value {
    json!({
        "ok": !problems.has_errors(),
        "problems": problems,
        "node": config.node.name,
        "groups": config.node.groups,
        "broker": config.mqtt.connection.url.as_str(),
        "sinks": config
            .sinks
            .list
            .iter()
            .zip(&config.store.sinks)
            .map(|(sink, share)| sink_json(config, sink, share))
            .collect::<Vec<_>>(),
        "data_dir": config.node.data_dir,
        "state_max_bytes": config.store.state_max_bytes,
        "memory_budget_bytes": config.budget(memory_bytes).bytes(),
        "metrics": config.http.listen,
        "requests": config.http_trigger.listen,
        "functions": functions.iter().map(|(dir, manifest)| json!({
            "dir": dir,
            "manifest": manifest,
            "settings": settings::as_json(config, manifest),
        })).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configured() -> (Config, Vec<(PathBuf, Manifest)>) {
        let text = "[node]\nname = \"board-7\"\ngroups = [\"plant\"]\n[upstream]\nurl = \"http://a/in\"\n[http]\nlisten = \"off\"\n\
                    [http_trigger]\nlisten = \"127.0.0.1:8080\"";
        let (config, problems) = Config::parse(text, Path::new("sedge.toml"));
        assert_eq!(problems, Problems::default());
        let text = "name = \"warm\"\nversion = \"1\"\nsubscribe = [\"s/+/t\"]\nexcept = [\"s/x/t\"]\nstate = \"topic\"\nhttp = [\"POST /t\"]\nat = \"0 6 * * *\"\nallow.publish = [\"d/#\"]";
        let manifest = Manifest::from_toml(text, Path::new("function.toml"), None).unwrap();
        (config, vec![("functions/warm".into(), manifest)])
    }

    #[test]
    fn the_summary_shows_what_would_run() {
        let (config, functions) = configured();
        let mut out = Vec::new();
        summary(&mut out, &config, &functions, 1 << 30).unwrap();
        let expected = "\
node       board-7, topics under sedge/board-7/, groups plant
broker     mqtt://localhost:1883
sink       upstream (webhook) http://a/in
  gets     alerts and forwards; at most 268435456 bytes wait for it
  prefix   up/board-7/, the default. It was sedge/board-7/ before: topic_prefix = \"sedge/board-7/\" keeps that
data       /var/lib/sedge
memory     268435456 bytes for messages in processing, of 1073741824 that this command may use
state      67108864 bytes for all functions (store.state_max_bytes)
metrics    off
requests   http://127.0.0.1:8080/

function   warm 1, from functions/warm
  receives s/+/t
  except   s/x/t
  answers  POST /t
  runs     at 0 6 * * * in the zone of the board, as $schedule/warm
  sends    d/#
  state    per topic, at most 65536 bytes
  limits   10000000 fuel, 100 ms, 4194304 bytes of memory, 64 outputs, 65536 bytes of output
";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn json_holds_the_manifests_and_the_problems() {
        let (config, functions) = configured();
        let (_, problems) = Config::parse("[mqtt]\nurl = 1", Path::new("sedge.toml"));
        let json = as_json(&config, &functions, &problems, 1 << 30);
        assert_eq!(json["ok"], false);
        assert_eq!(json["problems"][0]["line"], 2);
        assert_eq!(json["problems"][0]["key"], "mqtt.url");
        assert_eq!(json["functions"][0]["manifest"]["limits"]["timeout_ms"], 100);
    }
}
