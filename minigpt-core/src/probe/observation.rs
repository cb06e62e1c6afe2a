//! Runs a program step by step and shows a probe what it wants to see.

use alloc::vec::Vec;
use core::ops::ControlFlow;

#[cfg(feature = "train")]
use super::TensorKind;
use super::views::{Reader, View};
use super::{Point, Probe};
use crate::backend::{Allocation, Backend, Device, read_elems};
use crate::config::GptConfig;
use crate::error::{Error, out_of_memory};
use crate::memory::{Buffer, InvalidOp, zeros};
use crate::op::{Columns, Sink, Step};
use crate::real::Real;

/// Stands for scratch that does not exist yet: no backend hands out such a number.
const PLANNED: Buffer = Buffer(u64::MAX - 8);

/// A pass over a batch that is observed, with the memory that this takes.
pub(crate) struct Observation<'o, B: Backend> {
    device: &'o Device<B>,
    config: &'o GptConfig,
    batch: usize,
    time: usize,
    probe: &'o mut dyn Probe<B::Elem>,
    asked: Vec<Asked<B::Elem>>,
    reader: Reader<'o>,
    /// For what ops beside the program write, if anything of it is wanted.
    scratch: Option<Allocation<B>>,
}

/// A tensor that the probe was asked about.
struct Asked<R> {
    point: Point,
    wanted: bool,
    /// Of the slices or pieces that have come so far, if there are more.
    values: Vec<R>,
}

impl<'o, B: Backend> Observation<'o, B> {
    /// Asks `probe` what it wants of the program that `emit` tells, over `batch` sequences of `time` tokens, and allocates what
    /// that takes on the device.
    pub(crate) fn new(
        device: &'o Device<B>,
        config: &'o GptConfig,
        [batch, time]: [usize; 2],
        probe: &'o mut dyn Probe<B::Elem>,
        emit: impl FnOnce(&mut Sink<'_>) -> ControlFlow<()>,
    ) -> Result<Self, Error<B::Error>> {
        let reader = Reader::new(config, B::Elem::DTYPE);
        let asked = Vec::new();
        let mut observation =
            Observation { device, config, batch, time, probe, asked, reader, scratch: None };
        let (mut bytes, mut workspace) = (0, 0);
        observation.each(emit, |observation, step| {
            for view in observation.reader.views(step, PLANNED).iter() {
                if let (true, Some(writer)) = (observation.ask(view)?, view.writer) {
                    let ops = core::slice::from_ref(&writer.op);
                    workspace = workspace.max(device.inspect(|backend| backend.workspace_bytes(ops)));
                    bytes = bytes.max(writer.bytes);
                }
            }
            Ok(())
        })?;
        let needed = bytes.saturating_add(workspace);
        if needed > 0 {
            let scratch = device.alloc(bytes).map_err(|error| out_of_memory(needed, error))?;
            device.lock().reserve(workspace).map_err(|error| out_of_memory(needed, error))?;
            observation.scratch = Some(scratch);
        }
        Ok(observation)
    }

    /// Whether the values of a tensor of this kind, the same in no layer, are wanted.
    #[cfg(feature = "train")]
    pub(crate) fn wants(&self, kind: TensorKind) -> bool {
        self.asked.iter().any(|asked| asked.wanted && asked.point.kind == kind && !asked.point.gradient)
    }

    /// Runs what `emit` tells, and shows the probe what it wants of it.
    pub(crate) fn run(
        &mut self,
        emit: impl FnOnce(&mut Sink<'_>) -> ControlFlow<()>,
    ) -> Result<(), Error<B::Error>> {
        self.each(emit, Self::step)
    }

    /// Calls `f` for each step, up to the first error.
    fn each(
        &mut self,
        emit: impl FnOnce(&mut Sink<'_>) -> ControlFlow<()>,
        mut f: impl FnMut(&mut Self, &Step) -> Result<(), Error<B::Error>>,
    ) -> Result<(), Error<B::Error>> {
        let mut result = Ok(());
        let _ = emit(&mut Sink::new(&mut |step| {
            result = f(self, step);
            if result.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        }));
        result
    }

    /// Asks about a tensor, unless that was done for an earlier slice.
    fn ask(&mut self, view: &View) -> Result<bool, InvalidOp> {
        let point = self.point(view);
        if let Some(asked) = self.asked.iter().find(|asked| asked.point == point) {
            return Ok(asked.wanted);
        }
        let bytes = (self.asked.len() + 1).saturating_mul(size_of::<Asked<B::Elem>>());
        self.asked
            .try_reserve(1)
            .map_err(|_| InvalidOp::HostMemory { operand: "observed tensors", bytes })?;
        let wanted = self.probe.wants(&point);
        self.asked.push(Asked { point, wanted, values: Vec::new() });
        Ok(wanted)
    }

    fn point(&self, view: &View) -> Point {
        let View { layer, kind, gradient, .. } = *view;
        Point { layer, kind, gradient, shape: kind.shape(self.config, self.batch, self.time) }
    }

    /// Its place among those that the probe was asked about, if it is wanted.
    fn wanted(&self, view: &View) -> Option<usize> {
        let point = self.point(view);
        self.asked.iter().position(|asked| asked.wanted && asked.point == point)
    }

    /// Each op has the device for itself, but not the pass as a whole: a probe may use the device too.
    fn step(&mut self, step: &Step) -> Result<(), Error<B::Error>> {
        let scratch = self.scratch.as_ref().map_or(PLANNED, Allocation::buffer);
        let views = self.reader.views(step, scratch);
        let instead = views.iter().filter(|view| self.wanted(view).is_some());
        let instead = instead.filter_map(|view| view.writer).find(|writer| writer.instead);
        let op = instead.map_or(step.op, |writer| writer.op);
        self.device.lock().run(&op).map_err(Error::Backend)?;
        for view in views.iter() {
            if let Some(place) = self.wanted(view) {
                let values = self.read(view).map_err(Error::Backend)?;
                self.show(place, values)?;
            }
        }
        Ok(())
    }

    fn read(&self, view: &View) -> Result<Vec<B::Elem>, B::Error> {
        let mut backend = self.device.lock();
        if let Some(writer) = view.writer.filter(|writer| !writer.instead) {
            backend.run(&writer.op)?;
        }
        let values = read_elems(&mut *backend, view.span)?;
        let Some(Columns { width, stride }) = view.columns else { return Ok(values) };
        // A vector of its own, since a probe may keep it: one that was cut would keep what lies between the rows too.
        let mut part = zeros("observed values", values.len().div_ceil(stride) * width)?;
        for (to, row) in part.chunks_exact_mut(width).zip(values.chunks(stride)) {
            to.copy_from_slice(&row[..width]);
        }
        Ok(part)
    }

    /// Hands the values to the probe, once there are those of all slices and pieces.
    fn show(&mut self, place: usize, values: Vec<B::Elem>) -> Result<(), InvalidOp> {
        let Some(asked) = self.asked.get_mut(place) else { return Ok(()) };
        let count = asked.point.count();
        if values.len() == count {
            return self.probe.see(&asked.point, values);
        }
        let bytes = count.saturating_mul(size_of::<B::Elem>());
        let rest = count.saturating_sub(asked.values.len());
        asked
            .values
            .try_reserve_exact(rest)
            .map_err(|_| InvalidOp::HostMemory { operand: "observed values", bytes })?;
        asked.values.extend(values);
        if asked.values.len() < count {
            return Ok(());
        }
        self.probe.see(&asked.point, core::mem::take(&mut asked.values))
    }
}
