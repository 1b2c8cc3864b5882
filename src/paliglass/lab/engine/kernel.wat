;; y[T×O] = x[T×I] · w[O×I]ᵀ + b, float32, row-major; I a multiple of 4.
;;
;; The one product of the whole model: projections, scores (q · kᵀ) and the output layer. Two rows of
;; x meet four rows of w at a time, so that each number loaded is used two or four times; the eight
;; sums stay in registers, four lanes each, and are added up at the end. b is an address, 0 for none.
;; All addresses are in bytes and lie in the imported memory.
(module
  (import "env" "memory" (memory 1))

  ;; The four lanes of a sum.
  (func $sum (param $v v128) (result f32)
    (f32.add
      (f32.add (f32x4.extract_lane 0 (local.get $v)) (f32x4.extract_lane 1 (local.get $v)))
      (f32.add (f32x4.extract_lane 2 (local.get $v)) (f32x4.extract_lane 3 (local.get $v)))))

  ;; Writes one number of y: a sum, and the bias of output $o.
  (func $put (param $y i32) (param $v v128) (param $b i32) (param $o i32)
    (f32.store (local.get $y)
      (f32.add
        (call $sum (local.get $v))
        (if (result f32) (local.get $b)
          (then (f32.load (i32.add (local.get $b) (i32.shl (local.get $o) (i32.const 2)))))
          (else (f32.const 0))))))

  (func (export "linear")
    (param $x i32) (param $T i32) (param $w i32) (param $b i32) (param $I i32) (param $O i32)
    (param $y i32)
    (local $row i32) (local $t i32) (local $o i32) (local $i i32) (local $two i32) (local $four i32)
    (local $xa i32) (local $xb i32) (local $ya i32) (local $yb i32)
    (local $w0 i32) (local $w1 i32) (local $w2 i32) (local $w3 i32)
    (local $p v128) (local $q v128) (local $m v128)
    (local $a0 v128) (local $a1 v128) (local $a2 v128) (local $a3 v128)
    (local $b0 v128) (local $b1 v128) (local $b2 v128) (local $b3 v128)
    (local.set $row (i32.shl (local.get $I) (i32.const 2)))
    (block $rows_done
      (loop $rows
        (br_if $rows_done (i32.ge_s (local.get $t) (local.get $T)))
        ;; The second row of the pair; at the end of an odd T the first again, and not written.
        (local.set $two (i32.lt_s (i32.add (local.get $t) (i32.const 1)) (local.get $T)))
        (local.set $xa
          (i32.add (local.get $x) (i32.mul (local.get $t) (local.get $row))))
        (local.set $xb
          (i32.add (local.get $xa) (i32.mul (local.get $two) (local.get $row))))
        (local.set $ya
          (i32.add (local.get $y)
            (i32.shl (i32.mul (local.get $t) (local.get $O)) (i32.const 2))))
        (local.set $yb
          (i32.add (local.get $ya) (i32.shl (local.get $O) (i32.const 2))))
        (local.set $o (i32.const 0))
        (block $outputs_done
          (loop $outputs
            (br_if $outputs_done (i32.ge_s (local.get $o) (local.get $O)))
            ;; Fewer than four outputs are left: the same row of w again, and not written.
            (local.set $four (i32.sub (local.get $O) (local.get $o)))
            (local.set $w0
              (i32.add (local.get $w) (i32.mul (local.get $o) (local.get $row))))
            (local.set $w1
              (i32.add (local.get $w0)
                (i32.mul (i32.gt_s (local.get $four) (i32.const 1)) (local.get $row))))
            (local.set $w2
              (i32.add (local.get $w1)
                (i32.mul (i32.gt_s (local.get $four) (i32.const 2)) (local.get $row))))
            (local.set $w3
              (i32.add (local.get $w2)
                (i32.mul (i32.gt_s (local.get $four) (i32.const 3)) (local.get $row))))
            (local.set $a0 (v128.const f32x4 0 0 0 0))
            (local.set $a1 (v128.const f32x4 0 0 0 0))
            (local.set $a2 (v128.const f32x4 0 0 0 0))
            (local.set $a3 (v128.const f32x4 0 0 0 0))
            (local.set $b0 (v128.const f32x4 0 0 0 0))
            (local.set $b1 (v128.const f32x4 0 0 0 0))
            (local.set $b2 (v128.const f32x4 0 0 0 0))
            (local.set $b3 (v128.const f32x4 0 0 0 0))
            (local.set $i (i32.const 0))
            (loop $inputs
              (local.set $p (v128.load (i32.add (local.get $xa) (local.get $i))))
              (local.set $q (v128.load (i32.add (local.get $xb) (local.get $i))))
              (local.set $m (v128.load (i32.add (local.get $w0) (local.get $i))))
              (local.set $a0 (f32x4.add (local.get $a0) (f32x4.mul (local.get $p) (local.get $m))))
              (local.set $b0 (f32x4.add (local.get $b0) (f32x4.mul (local.get $q) (local.get $m))))
              (local.set $m (v128.load (i32.add (local.get $w1) (local.get $i))))
              (local.set $a1 (f32x4.add (local.get $a1) (f32x4.mul (local.get $p) (local.get $m))))
              (local.set $b1 (f32x4.add (local.get $b1) (f32x4.mul (local.get $q) (local.get $m))))
              (local.set $m (v128.load (i32.add (local.get $w2) (local.get $i))))
              (local.set $a2 (f32x4.add (local.get $a2) (f32x4.mul (local.get $p) (local.get $m))))
              (local.set $b2 (f32x4.add (local.get $b2) (f32x4.mul (local.get $q) (local.get $m))))
              (local.set $m (v128.load (i32.add (local.get $w3) (local.get $i))))
              (local.set $a3 (f32x4.add (local.get $a3) (f32x4.mul (local.get $p) (local.get $m))))
              (local.set $b3 (f32x4.add (local.get $b3) (f32x4.mul (local.get $q) (local.get $m))))
              (local.set $i (i32.add (local.get $i) (i32.const 16)))
              (br_if $inputs (i32.lt_s (local.get $i) (local.get $row))))
            (if (i32.gt_s (local.get $four) (i32.const 0))
              (then
                (call $put (local.get $ya) (local.get $a0) (local.get $b) (local.get $o))
                (if (local.get $two)
                  (then (call $put (local.get $yb) (local.get $b0) (local.get $b) (local.get $o))))
                (local.set $ya (i32.add (local.get $ya) (i32.const 4)))
                (local.set $yb (i32.add (local.get $yb) (i32.const 4)))
                (local.set $o (i32.add (local.get $o) (i32.const 1)))))
            (if (i32.gt_s (local.get $four) (i32.const 1))
              (then
                (call $put (local.get $ya) (local.get $a1) (local.get $b) (local.get $o))
                (if (local.get $two)
                  (then (call $put (local.get $yb) (local.get $b1) (local.get $b) (local.get $o))))
                (local.set $ya (i32.add (local.get $ya) (i32.const 4)))
                (local.set $yb (i32.add (local.get $yb) (i32.const 4)))
                (local.set $o (i32.add (local.get $o) (i32.const 1)))))
            (if (i32.gt_s (local.get $four) (i32.const 2))
              (then
                (call $put (local.get $ya) (local.get $a2) (local.get $b) (local.get $o))
                (if (local.get $two)
                  (then (call $put (local.get $yb) (local.get $b2) (local.get $b) (local.get $o))))
                (local.set $ya (i32.add (local.get $ya) (i32.const 4)))
                (local.set $yb (i32.add (local.get $yb) (i32.const 4)))
                (local.set $o (i32.add (local.get $o) (i32.const 1)))))
            (if (i32.gt_s (local.get $four) (i32.const 3))
              (then
                (call $put (local.get $ya) (local.get $a3) (local.get $b) (local.get $o))
                (if (local.get $two)
                  (then (call $put (local.get $yb) (local.get $b3) (local.get $b) (local.get $o))))
                (local.set $ya (i32.add (local.get $ya) (i32.const 4)))
                (local.set $yb (i32.add (local.get $yb) (i32.const 4)))
                (local.set $o (i32.add (local.get $o) (i32.const 1)))))
            (br $outputs)))
        (local.set $t (i32.add (local.get $t) (i32.const 2)))
        (br $rows)))))
