//! Where modules become code that workers load: the cache of this host, else the compiler.

use std::collections::BTreeSet;

use bytes::Bytes;

use super::cache::Cache;
use super::compiler::{Compiler, CompilerError};
use crate::message::Digest;
use crate::sandbox::Class;

pub trait Compile: Send + Sync {
    fn cached(&self, digest: &Digest, class: Class) -> Option<Bytes>;

    /// Takes long.
    fn compile(&self, digest: &Digest, wasm: &[u8], class: Class) -> Result<Bytes, CompilerError>;

    /// Nothing else is needed any longer.
    fn keep(&self, digests: &BTreeSet<Digest>);
}

pub struct CachingCompiler {
    pub cache: Cache,
    pub compiler: Compiler,
}

impl CompileBackend for CachingCompiler {
    fn cached(&self, digest: &Digest, class: Class) -> Option<Bytes> {
        self.cache.load(digest, class)
    }

    fn compile(&self, digest: &Digest, wasm: &[u8], class: Class) -> Result<Bytes, CompilerError> {
        let code = self.compiler.compile(wasm, class, None)?;
        if let Err(error) = self.cache.store(digest, class, &code) {
            tracing::warn!(error = %anyhow::Error::from(error), "compiled code is not kept; it is compiled again at the next start");
        }
        Ok(code)
    }

    fn keep(&self, digests: &BTreeSet<Digest>) {
        self.cache.keep(digests);
    }
}
