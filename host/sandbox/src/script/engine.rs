//! The JavaScript engine: QuickJS-ng as one core module, built by `cross/js-engine.sh`.
//!
//! The module is compiled without its data segments. So one compiled engine serves all scripts, each with a memory of its own that the
//! host puts in place.

use std::sync::LazyLock;

use wasmparser::{DataKind, Operator, Parser, Payload};

#[cfg(feature = "compiler")]
use crate::componentize::{push_section, sections};
use sedge_core::message::Digest;

/// Boards without a compiler have no code of the engine, and run no scripts.
const ENGINE: &[u8] = if cfg!(feature = "compiler") { include_bytes!("engine.wasm") } else { &[] };

/// Digest of the engine, by which its compiled code is cached.
pub static DIGEST: LazyLock<Digest> = LazyLock::new(|| sedge_core::deploy::digest(ENGINE));

/// The engine without data segments.
#[cfg(feature = "compiler")]
pub(crate) fn without_data() -> Vec<u8> {
    const START_SECTION: u8 = 8;
    const DATA_SECTION: u8 = 11;
    const DATA_COUNT_SECTION: u8 = 12;
    let mut module = ENGINE[..8].to_vec();
    for (id, content) in sections(ENGINE).expect("the engine is well-formed") {
        if !matches!(id, START_SECTION | DATA_SECTION | DATA_COUNT_SECTION) {
            push_section(&mut module, id, content);
        }
    }
    module
}

/// Address and content of each data segment.
pub(crate) fn data() -> Vec<(usize, &'static [u8])> {
    let mut segments = Vec::new();
    for payload in Parser::new(0).parse_all(ENGINE).flatten() {
        let Payload::DataSection(section) = payload else { continue };
        for segment in section.into_iter().flatten() {
            let DataKind::Active { memory_index: 0, offset_expr } = segment.kind else { continue };
            if let Ok(Operator::I32Const { value }) = offset_expr.get_operators_reader().read() {
                segments.push((value.cast_unsigned() as usize, segment.data));
            }
        }
    }
    segments
}

#[cfg(all(test, feature = "compiler"))]
mod tests {
    use super::*;
    use wasmparser::ExternalKind;

    /// What the memory image does not hold must be the same in each instance.
    #[test]
    fn nothing_but_memory_and_one_global_can_change() {
        let (mut mutable, mut exports, mut memories) = (0, Vec::new(), Vec::new());
        for payload in Parser::new(0).parse_all(ENGINE) {
            match payload.unwrap() {
                Payload::GlobalSection(section) => {
                    mutable += section.into_iter().filter(|global| global.as_ref().unwrap().ty.mutable).count();
                }
                Payload::MemorySection(section) => memories.extend(section.into_iter().map(Result::unwrap)),
                Payload::ExportSection(section) => {
                    exports.extend(section.into_iter().map(Result::unwrap).map(|it| (it.name, it.kind)));
                }
                Payload::ImportSection(section) => {
                    for import in section.into_imports() {
                        assert!(import.unwrap().module.starts_with("wasi:"), "an interface of the world");
                    }
                }
                Payload::StartSection { .. } => panic!("a start function would run before the memory is in place"),
                Payload::CodeSectionEntry(body) => {
                    for operator in body.get_operators_reader().unwrap() {
                        let operator = operator.unwrap();
                        let changes = matches!(
                            operator,
                            Operator::TableSet { .. }
                                | Operator::TableGrow { .. }
                                | Operator::TableFill { .. }
                                | Operator::TableCopy { .. }
                                | Operator::TableInit { .. }
                                | Operator::ElemDrop { .. }
                                | Operator::MemoryInit { .. }
                                | Operator::DataDrop { .. }
                        );
                        assert!(!changes, "{operator:?}");
                    }
                }
                _ => {}
            }
        }
        assert_eq!(mutable, 1, "the stack pointer, which is back at its first value between calls");
        assert_eq!(memories.len(), 1);
        assert!(exports.iter().all(|(name, kind)| match *kind {
            ExternalKind::Memory => *name == "memory",
            ExternalKind::Func => true,
            _ => false,
        }));
        let module = without_data();
        let mut rest = Parser::new(0).parse_all(&module).map(Result::unwrap).collect::<Vec<_>>();
        rest.retain(|part| matches!(part, Payload::DataSection(_) | Payload::DataCountSection { .. }));
        assert!(rest.is_empty(), "{rest:?}");
        wasmparser::Validator::new().validate_all(&module).unwrap();
    }

    #[test]
    fn all_data_segments_are_found() {
        let total: usize = data().iter().map(|(_, bytes)| bytes.len()).sum();
        assert!(total > 100_000, "{total} bytes");
        for payload in Parser::new(0).parse_all(ENGINE) {
            if let Payload::DataSection(section) = payload.unwrap() {
                assert_eq!(section.count() as usize, data().len(), "each is active, at a constant address");
            }
        }
    }

    #[test]
    fn the_digest_beside_the_engine_is_its_own() {
        let written = include_str!("engine.wasm.sha256").split_whitespace().next().unwrap();
        assert_eq!(DIGEST.to_string(), written);
    }
}
