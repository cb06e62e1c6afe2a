//! The device in a build without the feature `cuda`: none. [`Device::open`] fails, so no value of these types exists
//! and their other methods cannot be called.

use crate::CudaError;

#[derive(Debug)]
pub(crate) enum Memory {}

impl Memory {
    pub(crate) fn len(&self) -> usize {
        match *self {}
    }
}

#[derive(Debug)]
pub(crate) enum Device {}

impl Device {
    pub(crate) fn open(_: u32) -> Result<Self, CudaError> {
        Err(CudaError::Unavailable {
            reason: "this program was built without CUDA; rebuild it with `--features cuda` (the feature `cuda` of \
                     minigpt-cuda) and run it where an NVIDIA driver is installed, or choose another backend"
                .into(),
        })
    }

    pub(crate) fn name(&self) -> &str {
        match *self {}
    }

    pub(crate) fn free_bytes(&self) -> Result<usize, CudaError> {
        match *self {}
    }

    pub(crate) fn alloc(&mut self, _: usize) -> Result<Memory, CudaError> {
        match *self {}
    }

    pub(crate) fn release(&mut self, _: Memory) -> Result<(), CudaError> {
        match *self {}
    }

    pub(crate) fn write(&mut self, _: &Memory, _: usize, _: &[u8]) -> Result<(), CudaError> {
        match *self {}
    }

    pub(crate) fn read(&mut self, _: &Memory, _: usize, _: &mut [u8]) -> Result<(), CudaError> {
        match *self {}
    }

    pub(crate) fn copy(
        &mut self,
        _: &Memory,
        _: usize,
        _: &Memory,
        _: usize,
        _: usize,
    ) -> Result<(), CudaError> {
        match *self {}
    }

    pub(crate) fn fill(&mut self, _: &Memory, _: usize, _: usize, _: u32) -> Result<(), CudaError> {
        match *self {}
    }

    pub(crate) fn fill_halves(&mut self, _: &Memory, _: usize, _: usize, _: u16) -> Result<(), CudaError> {
        match *self {}
    }

    pub(crate) fn sync(&mut self) -> Result<(), CudaError> {
        match *self {}
    }

    pub(crate) fn check_launch(&mut self) -> Result<(), CudaError> {
        match *self {}
    }
}
