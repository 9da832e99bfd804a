//! A prepared plan is found by evaluation. A single test, as the counters are per process.

use candle_core::Device;
use metal_candle_graph::{LazyTensor, prepare, statistics};

#[test]
fn evaluation_uses_the_prepared_plan() {
    let x = LazyTensor::from_slice(&[1.0, 2.0, 3.0], &[3], &Device::Cpu).unwrap();
    let record = || x.mul_scalar(3.0).unwrap().add(&x).unwrap();
    let y = record();
    let before = statistics();
    prepare(&[y.clone(), y.clone()]).unwrap();
    let prepared = statistics();
    assert_eq!(prepared.plan_misses, before.plan_misses + 1);
    assert_eq!(prepared.evaluations, before.evaluations, "something ran");
    assert!(!y.is_evaluated());

    assert_eq!(y.to_vec::<f32>().unwrap(), [4.0, 8.0, 12.0]);
    prepare(&[record()]).unwrap();
    let after = statistics();
    assert_eq!(after.plan_misses, prepared.plan_misses);
    assert_eq!(after.plan_hits, prepared.plan_hits + 2);
    // The plan exists already.
    prepare(&[y]).unwrap();
    assert_eq!(statistics(), after);
}
