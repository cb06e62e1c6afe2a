//! Attention, and the rotation of its queries and keys.

use minigpt_core::op::*;
use minigpt_core::reference::attention::*;
use minigpt_core::reference::rotary::*;

use super::memory::Memory;

#[test]
fn rotary_turns_by_as_many_rows_of_its_table_as_it_has_positions() {
    let mut memory = Memory::new();
    let (batch, time, heads, d_head) = (2, 3, 2, 4);
    let (qkv_span, mut qkv) = memory.random(batch * time * 3 * heads * d_head);
    let mut table = vec![0.0; 8 * d_head];
    rotary_table(&mut table, d_head);
    let table_span = memory.put(&table);
    for inverse in [false, true] {
        rotary(&mut qkv, &table, inverse, batch, time, heads, d_head);
        let op = Rotary { qkv: qkv_span, table: table_span, batch, time, heads, d_head, inverse };
        memory.expect(op, &[(qkv_span, &qkv)]);
    }
}

#[test]
fn attention_forward_backward_and_scores_match_the_slices() {
    let mut memory = Memory::new();
    let (batch, time, heads, d_head, scale) = (2, 3, 2, 4, 0.7);
    let wide = batch * time * heads * d_head;
    let (qkv_span, qkv) = memory.random(3 * wide);
    let (d_out_span, d_out) = memory.random(wide);
    let [out_span, lse_span] = [wide, batch * heads * time].map(|len| memory.room(len));
    let d_qkv_span = memory.room(3 * wide);
    let scores_span = memory.room(batch * heads * time * time);
    let (with_dropout, mask) = memory.dropout(0.4, 3);
    for (dropout, mask) in [(with_dropout, Some(&mask)), (None, None)] {
        let (mut out, mut lse) = (vec![0.0; wide], vec![0.0; batch * heads * time]);
        let mut row = vec![0.0; time];
        attention_forward(&qkv, mask, &mut out, &mut lse, &mut row, batch, time, heads, d_head, scale);
        let forward = AttentionForward {
            qkv: qkv_span,
            out: out_span,
            lse: lse_span,
            batch,
            time,
            heads,
            d_head,
            scale,
            dropout,
        };
        memory.expect(forward, &[(out_span, &out), (lse_span, &lse)]);

        let mut d_qkv = vec![0.0; 3 * wide];
        attention_backward(&qkv, &out, &lse, &d_out, mask, &mut d_qkv, batch, time, heads, d_head, scale);
        let backward = AttentionBackward {
            qkv: qkv_span,
            out: out_span,
            lse: lse_span,
            d_out: d_out_span,
            d_qkv: d_qkv_span,
            batch,
            time,
            heads,
            d_head,
            scale,
            dropout,
        };
        memory.expect(backward, &[(d_qkv_span, &d_qkv)]);
    }
    for softmax in [true, false] {
        let mut scores = vec![0.0; batch * heads * time * time];
        attention_scores(&qkv, &mut scores, softmax, batch, time, heads, d_head, scale);
        let op = AttentionScores {
            qkv: qkv_span,
            scores: scores_span,
            softmax,
            batch,
            time,
            heads,
            d_head,
            scale,
        };
        memory.expect(op, &[(scores_span, &scores)]);
    }
}
