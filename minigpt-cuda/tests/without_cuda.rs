//! What a build without the feature `cuda` promises.
#![cfg(not(feature = "cuda"))]

use minigpt_core::conformance::crosses_threads;
use minigpt_core::{BackendError, ErrorKind, Import};
use minigpt_cuda::Cuda;

const _: () = crosses_threads::<Cuda>();

#[test]
fn without_the_feature_it_is_unavailable_and_says_what_to_do() {
    let error = Cuda::new(0).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    let message = error.to_string();
    assert!(message.contains("--features cuda") && message.contains("NVIDIA driver"), "{message}");
}

#[test]
fn a_program_over_the_backend_compiles_all_the_same() {
    fn train<'a>(backend: Result<impl Import<'a, Elem = f32>, impl BackendError>) -> String {
        match backend {
            Ok(mut backend) => format!("{:?}", backend.alloc(4)),
            Err(error) => error.to_string(),
        }
    }
    assert!(train(Cuda::new(0)).contains("no CUDA device can be used"));
}
