//! Functions that run as whole components: the engine connects their parts and lifts and lowers values.

use bytes::Bytes;
use wasmtime::component::{Component, Linker};
use wasmtime::{Result, Store};

use super::SandboxError;
use super::contract::Contract;
use super::host::{self, HostState};
use super::run::shorten;
use bindings::exports::sedge::function::handler;
use bindings_0_1::exports::sedge::function::handler as handler_0_1;
use sedge_core::grants::Grants;
use sedge_core::limits::{MAX_HANDLES, OUTPUT_BYTES};
use sedge_core::message::{
    Alert, AlertStatus, Failure, FailureCode, Message, Output, Publication, Reply, Severity, Verdict, Wake,
};

pub(crate) mod bindings {
    wasmtime::component::bindgen!({
        path: "../../guest-sdk/wit",
        world: "function",
        ownership: Borrowing { duplicate_if_necessary: true },
        imports: { default: trappable },
        with: {
            "wasi:keyvalue/store.bucket": super::super::host::Bucket,
            "wasi:keyvalue/atomics.cas": super::super::host::Cas,
        },
        require_store_data_send: false,
    });
}

/// The handler of contract 0.1.0. Its imports are those of [`bindings`].
mod bindings_0_1 {
    wasmtime::component::bindgen!({
        inline: "package sedge:host; world handler { export sedge:function/handler@0.1.0; }",
        path: [
            "../../guest-sdk/wit/deps/wasi-clocks",
            "../../guest-sdk/wit/deps/wasi-config",
            "../../guest-sdk/wit/deps/wasi-keyvalue",
            "../../guest-sdk/wit/deps/wasi-logging",
            "../../guest-sdk/wit/deps/wasi-random",
            "../../guest-sdk/wit/0.1.0",
        ],
        ownership: Borrowing { duplicate_if_necessary: true },
        require_store_data_send: false,
    });
}

const _: () = assert!(size_of::<handler::Output>() <= OUTPUT_BYTES);

/// A component ready to be instantiated.
pub struct ComponentFunction(Handler);

enum Handler {
    V0_1(bindings_0_1::HandlerPre<HostState>),
    V0_2(bindings::FunctionPre<HostState>),
}

impl ComponentFunction {
    pub fn new(component: &Component, grants: Grants) -> Result<Self, SandboxError> {
        let engine = component.engine();
        let mut linker = Linker::new(engine);
        host::add_to_linker(&mut linker).map_err(SandboxError::Engine)?;
        crate::grants::add_to_linker(grants, &mut linker).map_err(SandboxError::Engine)?;
        for (import, _) in component.component_type().imports(engine) {
            grants.check_name(import)?;
        }
        let names: Vec<_> = component.component_type().exports(engine).map(|(name, _)| name.to_owned()).collect();
        let contract = Contract::of_exports(names.iter().map(|name| &**name))?;
        let handler = linker.instantiate_pre(component).and_then(|pre| match contract {
            Some(Contract::V0_1) => bindings_0_1::HandlerPre::new(pre).map(Handler::V0_1),
            Some(Contract::V0_2) | None => bindings::FunctionPre::new(pre).map(Handler::V0_2),
        });
        handler.map(Self).map_err(SandboxError::World)
    }

    /// Sets up an instance and has it handle the message.
    pub fn call(&self, store: &mut Store<HostState>, message: &Message) -> Result<Verdict> {
        store.set_hostcall_fuel(store.data().limits.transfer_bytes());
        store.set_max_component_handles(MAX_HANDLES);
        let properties: Vec<(&str, &str)> =
            message.properties.iter().map(|(name, value)| (&**name, &**value)).collect();
        Ok(match &self.0 {
            Handler::V0_1(pre) => {
                let guest = pre.instantiate(&mut *store)?;
                let ended = guest.sedge_function_handler().call_handle(
                    store,
                    handler_0_1::Message {
                        topic: &message.topic,
                        payload: &message.payload,
                        content_type: message.content_type.as_deref(),
                        properties: &properties,
                        received_at_ms: message.received_at_ms,
                        clock_synced: message.clock_synced,
                        attempt: message.attempt,
                    },
                )?;
                match ended {
                    Ok(outputs) => {
                        Verdict::Done(outputs.into_iter().map(|output| self::output(output.into())).collect())
                    }
                    Err(failure) => self::failure(failure.into()),
                }
            }
            Handler::V0_2(pre) => {
                let guest = pre.instantiate(&mut *store)?;
                let ended = guest.sedge_function_handler().call_handle(
                    store,
                    handler::Message {
                        topic: &message.topic,
                        payload: &message.payload,
                        content_type: message.content_type.as_deref(),
                        properties: &properties,
                        received_at_ms: message.received_at_ms,
                        clock_synced: message.clock_synced,
                        attempt: message.attempt,
                        retained: message.retained,
                        response_topic: message.response_topic.as_deref(),
                        correlation_data: message.correlation_data.as_deref(),
                    },
                )?;
                match ended {
                    Ok(outputs) => Verdict::Done(outputs.into_iter().map(output).collect()),
                    Err(failure) => self::failure(failure),
                }
            }
        })
    }
}

fn failure(failure: handler::Failure) -> Verdict {
    match failure {
        handler::Failure::Reject(reason) => {
            Verdict::Failed(Failure { code: FailureCode::Rejected, detail: shorten(reason) })
        }
        handler::Failure::Retry(retry) => Verdict::Retry { after_ms: retry.after_ms, reason: shorten(retry.reason) },
    }
}

fn output(output: handler::Output) -> Output {
    match output {
        handler::Output::Alert(alert) => Output::Alert(Alert {
            key: alert.key,
            severity: match alert.severity {
                handler::Severity::Info => Severity::Info,
                handler::Severity::Warning => Severity::Warning,
                handler::Severity::Critical => Severity::Critical,
            },
            status: match alert.status {
                handler::AlertStatus::Firing => AlertStatus::Firing,
                handler::AlertStatus::Resolved => AlertStatus::Resolved,
            },
            summary: alert.summary,
            value: alert.value,
            labels: alert.labels,
            sink: alert.sink.map(Into::into),
        }),
        handler::Output::Forward(publication) => Output::Forward(self::publication(publication)),
        handler::Output::Publish(publication) => Output::Publish(self::publication(publication)),
        handler::Output::Wake(wake) => Output::Wake(Wake { name: wake.name.into(), after_ms: wake.after_ms }),
        handler::Output::Reply(reply) => Output::Reply(Reply {
            status: reply.status,
            content_type: reply.content_type.map(Into::into),
            body: reply.body.into(),
        }),
    }
}

fn publication(publication: handler::Publication) -> Publication {
    Publication {
        topic: publication.topic.into(),
        payload: Bytes::from(publication.payload),
        content_type: publication.content_type.map(Into::into),
        retain: publication.retain,
        sink: publication.sink.map(Into::into),
    }
}

// Contract 0.2.0 has everything that 0.1.0 has.

impl From<handler_0_1::Failure> for handler::Failure {
    fn from(failure: handler_0_1::Failure) -> Self {
        match failure {
            handler_0_1::Failure::Reject(reason) => Self::Reject(reason),
            handler_0_1::Failure::Retry(retry) => {
                Self::Retry(handler::Retry { after_ms: retry.after_ms, reason: retry.reason })
            }
        }
    }
}

impl From<handler_0_1::Output> for handler::Output {
    fn from(output: handler_0_1::Output) -> Self {
        match output {
            handler_0_1::Output::Alert(alert) => Self::Alert(handler::Alert {
                key: alert.key,
                severity: match alert.severity {
                    handler_0_1::Severity::Info => handler::Severity::Info,
                    handler_0_1::Severity::Warning => handler::Severity::Warning,
                    handler_0_1::Severity::Critical => handler::Severity::Critical,
                },
                status: match alert.status {
                    handler_0_1::AlertStatus::Firing => handler::AlertStatus::Firing,
                    handler_0_1::AlertStatus::Resolved => handler::AlertStatus::Resolved,
                },
                summary: alert.summary,
                value: alert.value,
                labels: alert.labels,
                sink: None,
            }),
            handler_0_1::Output::Forward(publication) => Self::Forward(publication.into()),
            handler_0_1::Output::Publish(publication) => Self::Publish(publication.into()),
        }
    }
}

impl From<handler_0_1::Publication> for handler::Publication {
    fn from(publication: handler_0_1::Publication) -> Self {
        let handler_0_1::Publication { topic, payload, content_type, retain } = publication;
        Self { topic, payload, content_type, retain, sink: None }
    }
}
