"""The numerics under the merge methods: tensors in, tensors out; no files, no names of tensors, no mergekit.

task_vector    what fine-tuning changed in one tensor, dense or factored; sums, stacks and the joint core of several
eigen          Gram matrices, and eigenpairs of symmetric matrices by LAPACK's steps
low_rank       best approximations of a rank, factors for an adapter, what LoRA and DoRA store
polar          singular triplets and polar factors that are aware of the numerical rank
filters        functions of a symmetric matrix: what a descent or a spectral filter does to a quadratic
rank_rules     how many leading eigenvalues to keep
interference   the quadratic L(x) of WUDI and OptMerge, assembled from the experts' task vectors
interaction    L of merged deltas at every strength
relations      how task vectors lie to each other: inner products, signs, spectra, subspaces
descent        OptMerge and WUDI by steps on L: SGD solved as a filter, Adam as a loop
calibration    a merged delta's singular values re-scaled by the experts' responses (SVC)
core_space     coordinates in which adapters are merged entry by entry
shared_bases   the bases of one rank that hold most of several adapters
closed_form    WUDI, SWUDI and ASWUDI by one spectral filter on L
trimming       the largest entries of a tensor
checks         the wording of a refused parameter value

The room imports torch, numpy, scipy and itself, and nothing else.
"""
