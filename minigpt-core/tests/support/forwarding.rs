//! Methods of a test's backend that the one inside it answers.

/// `forward!(inner: alloc release)` in an `impl Backend`: these methods are those of `self.inner`.
macro_rules! forward {
    ($inner:tt: $($method:ident)*) => {
        $(forward!(@ $inner $method);)*
    };
    (@ $inner:tt alloc) => {
        fn alloc(&mut self, bytes: usize) -> Result<minigpt_core::Buffer, Self::Error> {
            self.$inner.alloc(bytes)
        }
    };
    (@ $inner:tt release) => {
        fn release(&mut self, buffer: minigpt_core::Buffer) -> Result<(), Self::Error> {
            self.$inner.release(buffer)
        }
    };
    (@ $inner:tt write) => {
        fn write(&mut self, to: minigpt_core::Span, bytes: &[u8]) -> Result<(), Self::Error> {
            self.$inner.write(to, bytes)
        }
    };
    (@ $inner:tt read) => {
        fn read(&mut self, from: minigpt_core::Span, bytes: &mut [u8]) -> Result<(), Self::Error> {
            self.$inner.read(from, bytes)
        }
    };
    (@ $inner:tt copy) => {
        fn copy(&mut self, from: minigpt_core::Span, to: minigpt_core::Span) -> Result<(), Self::Error> {
            self.$inner.copy(from, to)
        }
    };
    (@ $inner:tt fill) => {
        fn fill(&mut self, to: minigpt_core::Span, value: f64) -> Result<(), Self::Error> {
            self.$inner.fill(to, value)
        }
    };
    (@ $inner:tt sync) => {
        fn sync(&mut self) -> Result<(), Self::Error> {
            self.$inner.sync()
        }
    };
    (@ $inner:tt run) => {
        fn run(&mut self, op: &minigpt_core::Op) -> Result<(), Self::Error> {
            self.$inner.run(op)
        }
    };
}
