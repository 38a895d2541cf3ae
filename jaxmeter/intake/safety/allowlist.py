"""What of Keras and TensorFlow a stranger's file may name: what computes, and nothing else.

Every name was decided one by one: it takes arrays, numbers and plain words, and gives arrays. What
is missing here runs code that the file brings, reads or writes a file, speaks to a network, calls
a method by its name, takes a function, or changes the process; or it is new, and opens once
somebody has read what it does. `trust=True` opens all of it. Nothing here imports a framework.
"""

# --- layers and models ---------------------------------------------------------------------------

# Of Keras 1 to 3, the names that older versions of TensorFlow wrote among them. Not among them:
# Lambda, TorchModuleWrapper, TFSMLayer, JaxLayer, FlaxLayer (the file's code); ClassMethod,
# InstanceMethod, InstanceProperty, ModuleWrapper (methods by name). TextVectorization and the
# lookups may not name a file (see FILES), and a cell's DropoutWrapper and ResidualWrapper may not
# bring a function (see FUNCTION_FIELDS).
LAYERS = frozenset(
    """
    Activation ActivityRegularization AdaptiveAveragePooling1D AdaptiveAveragePooling2D
    AdaptiveAveragePooling3D AdaptiveMaxPooling1D AdaptiveMaxPooling2D AdaptiveMaxPooling3D Add
    AdditiveAttention AddLoss AddMetric AlphaDropout Attention AugMix AutoContrast Average
    AveragePooling1D AveragePooling2D AveragePooling3D AvgPool1D AvgPool2D AvgPool3D
    BatchNormalization BatchNormalizationBase BatchNormalizationV1 BatchNormalizationV2
    Bidirectional CategoryEncoding CenterCrop Concatenate
    ContrastLimitedAdaptiveHistogramEqualization Conv1D Conv1DTranspose Conv2D Conv2DTranspose
    Conv3D Conv3DTranspose ConvLSTM1D ConvLSTM2D ConvLSTM2DCell ConvLSTM3D ConvLSTMCell
    Convolution1D Convolution1DTranspose Convolution2D Convolution2DTranspose Convolution3D
    Convolution3DTranspose Cropping1D Cropping2D Cropping3D CuDNNGRU CuDNNLSTM
    Custom>CustomScaleLayer Custom>SharpnessAwareMinimization CustomScaleLayer CutMix Dense
    DenseFeatures DepthwiseConv1D DepthwiseConv2D DeviceWrapper Discretization Dot Dropout
    DropoutWrapper EinsumDense ELU Embedding Equalization Flatten Functional GaussianDropout
    GaussianNoise GlobalAveragePooling1D GlobalAveragePooling2D GlobalAveragePooling3D
    GlobalAvgPool1D GlobalAvgPool2D GlobalAvgPool3D GlobalMaxPool1D GlobalMaxPool2D GlobalMaxPool3D
    GlobalMaxPooling1D GlobalMaxPooling2D GlobalMaxPooling3D GroupedQueryAttention
    GroupNormalization GroupQueryAttention GRU GRUCell GRUCellV1 GRUCellV2 GRUV1 GRUV2
    HashedCrossing Hashing Identity IndexLookup InputLayer InputSpec IntegerLookup Layer
    LayerNormalization LayerScale LeakyReLU LinearModel LocallyConnected1D LocallyConnected2D LSTM
    LSTMCell LSTMCellV1 LSTMCellV2 LSTMV1 LSTMV2 Masking Maximum MaxNumBoundingBoxes MaxPool1D
    MaxPool2D MaxPool3D MaxPooling1D MaxPooling2D MaxPooling3D MelSpectrogram Minimum MixUp Model
    MultiHeadAttention Multiply Normalization Permute Pipeline PReLU RandAugment RandomBrightness
    RandomColorDegeneration RandomColorJitter RandomContrast RandomCrop RandomElasticTransform
    RandomErasing RandomFlip RandomFourierFeatures RandomGaussianBlur RandomGrayscale RandomHeight
    RandomHue RandomInvert RandomPerspective RandomPosterization RandomRotation RandomSaturation
    RandomSharpness RandomShear RandomTranslation RandomWidth RandomZoom ReLU RepeatVector
    Rescaling Reshape ResidualWrapper Resizing ReversibleEmbedding RMSNormalization RNN
    SeparableConv1D SeparableConv2D SeparableConvolution1D SeparableConvolution2D SequenceFeatures
    Sequential SimpleRNN SimpleRNNCell Softmax Solarization SpatialDropout1D SpatialDropout2D
    SpatialDropout3D SpectralNormalization StackedRNNCells STFTSpectrogram StochasticDepth
    StringLookup Subtract SyncBatchNormalization TextVectorization ThresholdedReLU TimeDistributed
    UnitNormalization UpSampling1D UpSampling2D UpSampling3D WideDeepModel Wrapper ZeroPadding1D
    ZeroPadding2D ZeroPadding3D
    """.split()
)

# One function of TensorFlow as a layer: which, is looked up in SYMBOLS. TensorFlowOpLayer holds a
# graph's operation, which is checked with those of graphs.
OP_LAYERS = frozenset(
    """
    SlicingOpLambda TensorFlowOpLayer TFOpLambda
    """.split()
)

# Keras 3's functions of tensors, as layers of functional models. Not among them: what takes a
# function (Map, Scan, AssociativeScan, Cond, Switch, WhileLoop, ForiLoop, VectorizedMap, JVP,
# Function).
OPERATIONS = frozenset(
    """
    Abs Absolute AdaptiveAveragePool AdaptiveMaxPool Add AffineTransform All AllClose Amax Amin
    Angle Any Append Arange Arccos Arccosh Arcsin Arcsinh Arctan Arctan2 Arctanh Argmax Argmin
    Argpartition Argsort Array ArraySplit Average AveragePool BatchNorm BinaryCrossentropy Bincount
    BitwiseAnd BitwiseInvert BitwiseLeftShift BitwiseNot BitwiseOr BitwiseRightShift BitwiseXor
    BroadcastTo Cast CategoricalCrossentropy Cbrt CDist Ceil Celu Cholesky CholeskyInverse Clip
    Concatenate Conj Conjugate Conv ConvertToTensor ConvTranspose Copy Corrcoef Correlate Cos Cosh
    CountNonzero CropImages Cross CTCDecode CTCLoss Cumprod Cumsum Deg2rad DepthToSpace
    DepthwiseConv Det Diag Diagflat Diagonal Diff Digitize Divide DivideNoNan Dot
    DotProductAttention Dsplit Dstack Eig Eigh Einsum ElasticTransform Elu EmptyLike Equal Erf Erfc
    Erfinv Exp Exp2 ExpandDims Expm1 ExtractPatches ExtractSequences Fabs FFT FFT2 Flip Fliplr
    Flipud Floor FloorDivide Fmax Fmin Fmod Fold Full FullLike GaussianBlur Gcd Gelu Geomspace
    GetItem Glu Greater GreaterEqual HardShrink HardSigmoid HardSilu HardTanh Heaviside Histogram
    Hsplit Hstack HSVToRGB Hypot I0 IFFT2 Imag Inner InTopK Inv IRFFT Isclose Isfinite IsIn Isinf
    Isnan Isneginf Isposinf Isreal ISTFT Kron LayerNorm Lcm Ldexp LeakyRelu LeftShift Less
    LessEqual Linspace Log Log10 Log1p Log2 Logaddexp Logaddexp2 Logdet LogicalAnd LogicalNot
    LogicalOr LogicalXor LogSigmoid LogSoftmax Logspace Logsumexp Lstsq LuFactor MapCoordinates
    Matmul MatrixRank Max Maximum MaxPool Mean Median Meshgrid Min Minimum Mish Mod Moments
    Moveaxis MultiHot Multiply Nanargmax Nanargmin Nancumprod Nancumsum Nanmax Nanmean Nanmedian
    Nanmin Nanpercentile Nanprod Nanquantile Nanstd Nansum NanToNum Nanvar Ndim Negative Nextafter
    Nonzero Norm Normalize NotEqual OneHot OnesLike Outer Pad PadImages Percentile
    PerspectiveTransform Pinv Polar Power Prod PSNR Ptp Qr Quantile Rad2deg Ravel Real Rearrange
    Reciprocal ReLU Relu Relu6 Repeat Reshape Resize RFFT RGBToGrayscale RGBToHSV RightShift
    RMSNorm Roll Rot90 Round Rsqrt SaturateCast ScaleAndTranslate Scatter ScatterUpdate
    SearchSorted SegmentMax SegmentMin SegmentProd SegmentSum Select Selu SeparableConv Sigmoid
    Sign Signbit Silu Sin Sinc Sinh Size Slice SliceUpdate Slogdet SobelEdges Softmax Softplus
    SoftShrink Softsign Solve SolveTriangular Sort SpaceToDepth SparseCategoricalCrossentropy
    Sparsemax SparsePlus SparseSigmoid Split Sqrt Square Squareplus Squeeze SSIM Stack Std STFT
    StopGradient Subtract Sum SVD Swapaxes Take TakeAlongAxis Tan Tanh TanhShrink Tensordot
    Threshold Tile TopK Trace Transpose Trapezoid Tril Triu TrueDivide Trunc Unfold Unique
    UnravelIndex Unstack Vander Var Vdot View ViewAsComplex ViewAsReal Vsplit Vstack Where
    ZerosLike
    """.split()
)

# Feature columns of DenseFeatures; not those that read a vocabulary or a checkpoint.
COLUMNS = frozenset(
    """
    BucketizedColumn CrossedColumn EmbeddingColumn HashedCategoricalColumn
    IdentityCategoricalColumn IndicatorColumn NumericColumn SequenceCategoricalColumn
    SequenceNumericColumn VocabularyListCategoricalColumn WeightedCategoricalColumn
    """.split()
)

# --- what layers are made of ---------------------------------------------------------------------

# Classes, and the words that stand for them; RandomFourierFeatures has two words of its own,
# gaussian and laplacian.
INITIALIZERS = frozenset(
    """
    Constant constant ConstantV2 gaussian glorot_normal glorot_normalV2 glorot_uniform
    glorot_uniformV2 GlorotNormal GlorotNormalV2 GlorotUniform GlorotUniformV2 he_normal
    he_normalV2 he_uniform he_uniformV2 HeNormal HeNormalV2 HeUniform HeUniformV2 Identity identity
    IdentityInitializer IdentityV2 Initializer initializer laplacian lecun_normal lecun_normalV2
    lecun_uniform lecun_uniformV2 LecunNormal LecunNormalV2 LecunUniform LecunUniformV2 normal one
    Ones ones OnesV2 Orthogonal orthogonal OrthogonalInitializer OrthogonalV2 random_normal
    random_uniform RandomNormal RandomNormalV2 RandomUniform RandomUniformV2 STFT stft
    STFTInitializer truncated_normal TruncatedNormal TruncatedNormalV2 uniform variance_scaling
    VarianceScaling VarianceScalingV2 zero Zeros zeros ZerosV2
    """.split()
)

REGULARIZERS = frozenset(
    """
    L1 l1 l1_l2 L1L2 l1l2 L2 l2 orthogonal_regularizer OrthogonalRegularizer Regularizer
    regularizer
    """.split()
)

CONSTRAINTS = frozenset(
    """
    Constraint constraint max_norm MaxNorm maxnorm min_max_norm MinMaxNorm non_neg NonNeg nonneg
    radial_constraint RadialConstraint unit_norm UnitNorm unitnorm
    """.split()
)

# Functions, and layers that stand for one. None has the name of a function of Python's own.
ACTIVATIONS = frozenset(
    """
    celu ELU elu exponential gelu glu hard_shrink hard_sigmoid hard_silu hard_swish hard_tanh
    leaky_relu LeakyReLU linear log_sigmoid log_softmax mish PReLU ReLU relu relu6 selu sigmoid
    silu soft_shrink Softmax softmax softplus softsign sparse_plus sparse_sigmoid sparsemax
    squareplus swish tanh tanh_shrink threshold ThresholdedReLU
    """.split()
)

# Of number types and quantisation.
POLICIES = frozenset(
    """
    AbsMaxQuantizer AWQConfig AWQDTypePolicy DTypePolicy DTypePolicyMap Float8QuantizationConfig
    FloatDTypePolicy GPTQConfig GPTQDTypePolicy Int4DTypePolicy Int4QuantizationConfig
    Int8QuantizationConfig Policy PolicyV1 QuantizationConfig QuantizedDTypePolicy
    QuantizedFloat8DTypePolicy Quantizer
    """.split()
)

GENERATORS = frozenset(
    """
    SeedGenerator
    """.split()
)

# --- of models that were compiled inside of others -----------------------------------------------

# And their schedules.
OPTIMIZERS = frozenset(
    """
    Adadelta Adafactor Adagrad Adam Adamax AdamW CosineDecay CosineDecayRestarts Custom>Adadelta
    Custom>Adafactor Custom>Adagrad Custom>Adam Custom>Adamax Custom>AdamW Custom>Ftrl Custom>Lion
    Custom>Nadam Custom>RMSprop Custom>SGD DynamicLossScale ExponentialDecay FixedLossScale Ftrl
    InverseTimeDecay LearningRateSchedule LinearCosineDecay Lion LossScaleOptimizer
    LossScaleOptimizerV3 MultiOptimizer Muon Nadam NoisyLinearCosineDecay Optimizer
    PiecewiseConstantDecay PolynomialDecay RMSprop ScheduleFreeAdamW SGD
    """.split()
)

LOSSES = frozenset(
    """
    BCE bce binary_crossentropy binary_focal_crossentropy BinaryCrossentropy
    BinaryFocalCrossentropy categorical_crossentropy categorical_focal_crossentropy
    categorical_generalized_cross_entropy categorical_hinge CategoricalCrossentropy
    CategoricalFocalCrossentropy CategoricalGeneralizedCrossEntropy CategoricalHinge Circle circle
    cosine_proximity cosine_similarity CosineSimilarity CTC ctc Dice dice Hinge hinge Huber huber
    huber_loss kl_divergence KLD kld KLDivergence kullback_leibler_divergence log_cosh LogCosh
    logcosh Loss LossFunctionWrapper MAE mae MAPE mape mean_absolute_error
    mean_absolute_percentage_error mean_squared_error mean_squared_logarithmic_error
    MeanAbsoluteError MeanAbsolutePercentageError MeanSquaredError MeanSquaredLogarithmicError MSE
    mse MSLE msle Poisson poisson sparse_categorical_crossentropy SparseCategoricalCrossentropy
    squared_hinge SquaredHinge Tversky tversky
    """.split()
)

METRICS = frozenset(
    """
    ACC acc Accuracy accuracy AUC BCE bce binary_accuracy binary_crossentropy
    binary_focal_crossentropy BinaryAccuracy BinaryCrossentropy BinaryIoU categorical_accuracy
    categorical_crossentropy categorical_focal_crossentropy categorical_generalized_cross_entropy
    categorical_hinge CategoricalAccuracy CategoricalCrossentropy CategoricalHinge circle
    ConcordanceCorrelation cosine_proximity cosine_similarity CosineSimilarity ctc dice F1Score
    FalseNegatives FalsePositives FBetaScore Hinge hinge huber huber_loss IoU kl_divergence KLD kld
    KLDivergence kullback_leibler_divergence log_cosh logcosh LogCoshError MAE mae MAPE mape Mean
    mean_absolute_error mean_absolute_percentage_error mean_squared_error
    mean_squared_logarithmic_error MeanAbsoluteError MeanAbsolutePercentageError MeanIoU
    MeanMetricWrapper MeanRelativeError MeanSquaredError MeanSquaredLogarithmicError MeanTensor
    Metric MSE mse MSLE msle OneHotIoU OneHotMeanIoU PearsonCorrelation Poisson poisson Precision
    PrecisionAtRecall R2Score Recall RecallAtPrecision Reduce RootMeanSquaredError
    SensitivityAtSpecificity sparse_categorical_accuracy sparse_categorical_crossentropy
    sparse_top_k_categorical_accuracy SparseCategoricalAccuracy SparseCategoricalCrossentropy
    SparseTopKCategoricalAccuracy SpecificityAtSensitivity squared_hinge SquaredHinge Sum
    SumOverBatchSize SumOverBatchSizeMetricWrapper top_k_categorical_accuracy
    TopKCategoricalAccuracy TrueNegatives TruePositives tversky
    """.split()
)

# keras.ops as activations; again without those that take functions.
OPERATION_FUNCTIONS = frozenset(
    """
    abs absolute adaptive_average_pool adaptive_max_pool add all allclose amax amin angle any
    append arange arccos arccosh arcsin arcsinh arctan arctan2 arctanh argmax argmin argpartition
    argsort array array_split average average_pool bartlett batch_normalization binary_crossentropy
    bincount bitwise_and bitwise_invert bitwise_left_shift bitwise_not bitwise_or
    bitwise_right_shift bitwise_xor blackman broadcast_to cast categorical_crossentropy cbrt cdist
    ceil celu cholesky cholesky_inverse clip concatenate conj conjugate conv conv_transpose
    convert_to_tensor copy corrcoef correlate cos cosh count_nonzero cross ctc_decode ctc_loss
    cumprod cumsum deg2rad depth_to_space depthwise_conv det diag diagflat diagonal diff digitize
    divide divide_no_nan dot dot_product_attention dsplit dstack eig eigh einsum elu empty
    empty_like equal erf erfc erfinv exp exp2 expand_dims expm1 extract_sequences eye fabs fft fft2
    flip fliplr flipud floor floor_divide fmax fmin fmod fold full full_like gcd gelu geomspace
    get_item glu greater greater_equal hamming hanning hard_shrink hard_sigmoid hard_silu
    hard_swish hard_tanh heaviside histogram hsplit hstack hypot i0 identity ifft2 imag in_top_k
    inner inv irfft isclose isfinite isin isinf isnan isneginf isposinf isreal istft kaiser kron
    layer_normalization lcm ldexp leaky_relu left_shift less less_equal linspace log log10 log1p
    log2 log_sigmoid log_softmax logaddexp logaddexp2 logdet logical_and logical_not logical_or
    logical_xor logspace logsumexp lstsq lu_factor matmul matrix_rank max max_pool maximum mean
    median meshgrid min minimum mod moments moveaxis multi_hot multiply nan_to_num nanargmax
    nanargmin nancumprod nancumsum nanmax nanmean nanmedian nanmin nanpercentile nanprod
    nanquantile nanstd nansum nanvar ndim negative nextafter nonzero norm normalize not_equal
    one_hot ones ones_like outer pad percentile pinv polar power prod psnr ptp qr quantile rad2deg
    ravel real rearrange reciprocal relu relu6 repeat reshape rfft right_shift rms_normalization
    roll rot90 round rsqrt saturate_cast scatter scatter_update searchsorted segment_max
    segment_min segment_prod segment_sum select selu separable_conv sigmoid sign signbit silu sin
    sinc sinh size slice slice_update slogdet soft_shrink softmax softplus softsign solve
    solve_triangular sort space_to_depth sparse_categorical_crossentropy sparse_plus sparse_sigmoid
    sparsemax split sqrt square squareplus squeeze stack std stft stop_gradient subtract sum svd
    swapaxes swish take take_along_axis tan tanh tanh_shrink tensordot threshold tile top_k trace
    transpose trapezoid tri tril triu true_divide trunc unfold unique unravel_index unstack vander
    var vdot view view_as_complex view_as_real vsplit vstack where zeros zeros_like
    """.split()
)

# --- TensorFlow ----------------------------------------------------------------------------------

# Functions of TensorFlow 2 by the names that tf_keras writes: arithmetic, shapes, reductions,
# networks, slices. With "compat.v1." before them they are TensorFlow 1's, which compute the same.
SYMBOLS = frozenset(
    prefix + name
    for prefix, names in {
        "": """
            abs acos acosh add add_n approx_top_k argmax argmin argsort as_string asin asinh
            assert_equal assert_greater assert_less assert_rank atan atan2 atanh batch_to_space
            bitcast boolean_mask broadcast_dynamic_shape broadcast_static_shape broadcast_to cast
            clip_by_global_norm clip_by_norm clip_by_value complex concat constant
            convert_to_tensor cos cosh cumsum divide dynamic_partition dynamic_stitch eig eigvals
            einsum ensure_shape equal exp expand_dims extract_volume_patches eye fftnd fill floor
            gather gather_nd greater greater_equal guarantee_const histogram_fixed_width
            histogram_fixed_width_bins identity identity_n ifftnd irfftnd less less_equal linspace
            logical_and logical_not logical_or matmul matrix_square_root maximum meshgrid minimum
            multiply negative norm not_equal one_hot ones ones_like pad parallel_stack pow range
            rank realdiv reduce_all reduce_any reduce_logsumexp reduce_max reduce_mean reduce_min
            reduce_prod reduce_sum repeat required_space_to_batch_paddings reshape reverse
            reverse_sequence rfftnd roll round saturate_cast scalar_mul scatter_nd searchsorted
            sequence_mask shape shape_n sigmoid sign sin sinh size slice sort space_to_batch
            space_to_batch_nd split sqrt square squeeze stack stop_gradient strided_slice subtract
            tan tanh tensor_scatter_nd_add tensor_scatter_nd_max tensor_scatter_nd_min
            tensor_scatter_nd_sub tensor_scatter_nd_update tensordot tile transpose truediv
            truncatediv truncatemod unique unique_with_counts unravel_index unstack where zeros
            zeros_like
        """,
        "__operators__.": """
            add eq getitem ne ragged_getitem
        """,
        "bitwise.": """
            bitwise_and bitwise_or bitwise_xor invert left_shift right_shift
        """,
        "debugging.": """
            assert_all_finite assert_equal assert_greater assert_greater_equal assert_integer
            assert_less assert_less_equal assert_near assert_negative assert_non_negative
            assert_non_positive assert_none_equal assert_positive assert_rank assert_rank_at_least
            assert_rank_in assert_same_float_dtype assert_scalar assert_shapes assert_type
            check_numerics is_numeric_tensor
        """,
        "dtypes.": """
            cast complex saturate_cast
        """,
        "math.": """
            abs accumulate_n acos acosh add add_n angle approx_max_k approx_min_k argmax argmin
            asin asinh atan atan2 atanh bessel_i0 bessel_i0e bessel_i1 bessel_i1e betainc bincount
            ceil confusion_matrix conj cos cosh count_nonzero cumprod cumsum cumulative_logsumexp
            digamma divide divide_no_nan equal erf erfc erfcinv erfinv exp expm1 floor floordiv
            floormod greater greater_equal igamma igammac imag in_top_k invert_permutation
            is_finite is_inf is_nan is_non_decreasing is_strictly_increasing l2_normalize lbeta
            less less_equal lgamma log log1p log_sigmoid log_softmax logical_and logical_not
            logical_or logical_xor maximum minimum mod multiply multiply_no_nan ndtri negative
            nextafter not_equal polygamma polyval pow real reciprocal reciprocal_no_nan reduce_all
            reduce_any reduce_euclidean_norm reduce_logsumexp reduce_max reduce_mean reduce_min
            reduce_prod reduce_std reduce_sum reduce_variance rint round rsqrt scalar_mul
            segment_max segment_mean segment_min segment_prod segment_sum sigmoid sign sin sinh
            sobol_sample softmax softplus softsign sqrt square squared_difference subtract tan tanh
            top_k truediv unsorted_segment_max unsorted_segment_mean unsorted_segment_min
            unsorted_segment_prod unsorted_segment_sqrt_n unsorted_segment_sum xdivy xlog1py xlogy
            zero_fraction zeta
        """,
        "math.special.": """
            bessel_i0 bessel_i0e bessel_i1 bessel_i1e bessel_j0 bessel_j1 bessel_k0 bessel_k0e
            bessel_k1 bessel_k1e bessel_y0 bessel_y1 dawsn expint fresnel_cos fresnel_sin spence
        """,
        "nn.": """
            approx_max_k approx_min_k atrous_conv2d atrous_conv2d_transpose avg_pool avg_pool1d
            avg_pool2d avg_pool3d batch_norm_with_global_normalization batch_normalization bias_add
            collapse_repeated compute_accidental_hits conv1d conv1d_transpose conv2d
            conv2d_transpose conv3d conv3d_transpose conv_transpose convolution crelu
            ctc_beam_search_decoder ctc_greedy_decoder ctc_loss ctc_unique_labels depth_to_space
            depthwise_conv2d depthwise_conv2d_backprop_filter depthwise_conv2d_backprop_input
            dilation2d dropout elu embedding_lookup embedding_lookup_sparse erosion2d
            fractional_avg_pool fractional_max_pool gelu in_top_k isotonic_regression l2_loss
            l2_normalize leaky_relu local_response_normalization log_poisson_loss log_softmax lrn
            max_pool max_pool1d max_pool2d max_pool3d max_pool_with_argmax moments
            normalize_moments pool relu relu6 safe_embedding_lookup_sparse selu separable_conv2d
            sigmoid sigmoid_cross_entropy_with_logits silu softmax
            softmax_cross_entropy_with_logits softplus softsign space_to_batch space_to_depth
            sparse_softmax_cross_entropy_with_logits sufficient_statistics swish tanh top_k
            weighted_cross_entropy_with_logits weighted_moments zero_fraction
        """,
        "nn.experimental.": """
            stateless_dropout
        """,
        "linalg.": """
            adjoint band_part banded_triangular_solve cholesky cholesky_solve cross det diag
            diag_part eig eigh eigh_tridiagonal eigvals eigvalsh einsum expm eye global_norm inv
            l2_normalize logdet logm lstsq lu lu_matrix_inverse lu_reconstruct lu_solve matmul
            matrix_rank matrix_transpose matvec norm normalize pinv qr set_diag slogdet solve sqrtm
            svd tensor_diag tensor_diag_part tensordot trace triangular_solve tridiagonal_matmul
            tridiagonal_solve
        """,
        "signal.": """
            dct fft fft2d fft3d fftnd fftshift frame hamming_window hann_window idct ifft ifft2d
            ifft3d ifftnd ifftshift inverse_mdct inverse_stft irfft irfft2d irfft3d irfftnd
            kaiser_bessel_derived_window kaiser_window linear_to_mel_weight_matrix mdct
            mfccs_from_log_mel_spectrograms overlap_and_add rfft rfft2d rfft3d rfftnd stft
            vorbis_window
        """,
        "image.": """
            adjust_brightness adjust_contrast adjust_gamma adjust_hue adjust_saturation
            central_crop combined_non_max_suppression convert_image_dtype crop_and_resize
            crop_to_bounding_box draw_bounding_boxes extract_glimpse extract_patches
            flip_left_right flip_up_down generate_bounding_box_proposals grayscale_to_rgb
            hsv_to_rgb image_gradients non_max_suppression non_max_suppression_overlaps
            non_max_suppression_padded non_max_suppression_with_scores pad_to_bounding_box
            per_image_standardization psnr random_brightness random_contrast random_crop
            random_flip_left_right random_flip_up_down random_hue random_saturation resize
            resize_with_crop_or_pad resize_with_pad rgb_to_grayscale rgb_to_hsv rgb_to_yiq
            rgb_to_yuv rot90 sample_distorted_bounding_box sobel_edges ssim ssim_multiscale
            stateless_random_brightness stateless_random_contrast stateless_random_crop
            stateless_random_flip_left_right stateless_random_flip_up_down stateless_random_hue
            stateless_random_saturation stateless_sample_distorted_bounding_box total_variation
            transpose yiq_to_rgb yuv_to_rgb
        """,
        "quantization.": """
            dequantize fake_quant_with_min_max_args fake_quant_with_min_max_args_gradient
            fake_quant_with_min_max_vars fake_quant_with_min_max_vars_gradient
            fake_quant_with_min_max_vars_per_channel
            fake_quant_with_min_max_vars_per_channel_gradient quantize quantize_and_dequantize
            quantize_and_dequantize_v2 quantized_concat
        """,
        "random.": """
            categorical gamma normal poisson shuffle stateless_binomial stateless_categorical
            stateless_gamma stateless_normal stateless_parameterized_truncated_normal
            stateless_poisson stateless_truncated_normal stateless_uniform truncated_normal uniform
        """,
        "sparse.": """
            add bincount concat expand_dims eye fill_empty_rows from_dense mask maximum minimum
            reduce_max reduce_sum reorder reset_shape reshape retain sampled_addmm segment_mean
            segment_sqrt_n segment_sum slice softmax sparse_dense_matmul split to_dense
            to_indicator transpose
        """,
        "ragged.": """
            boolean_mask constant range row_splits_to_segment_ids segment_ids_to_row_splits stack
            stack_dynamic_partitions
        """,
        "keras.activations.": """
            elu exponential gelu hard_sigmoid linear mish relu selu sigmoid softmax softplus
            softsign swish tanh
        """,
        "keras.losses.": """
            binary_crossentropy binary_focal_crossentropy categorical_crossentropy
            categorical_focal_crossentropy categorical_hinge cosine_similarity hinge huber
            kl_divergence KLD kld kullback_leibler_divergence log_cosh logcosh MAE mae MAPE mape
            mean_absolute_error mean_absolute_percentage_error mean_squared_error
            mean_squared_logarithmic_error MSE mse MSLE msle poisson
            sparse_categorical_crossentropy squared_hinge
        """,
        "keras.metrics.": """
            binary_accuracy binary_crossentropy binary_focal_crossentropy categorical_accuracy
            categorical_crossentropy categorical_focal_crossentropy hinge kl_divergence KLD kld
            kullback_leibler_divergence log_cosh logcosh MAE mae MAPE mape mean_absolute_error
            mean_absolute_percentage_error mean_squared_error mean_squared_logarithmic_error MSE
            mse MSLE msle poisson sparse_categorical_accuracy sparse_categorical_crossentropy
            sparse_top_k_categorical_accuracy squared_hinge top_k_categorical_accuracy
        """,
        "keras.backend.": """
            abs all any arange argmax argmin batch_dot batch_flatten batch_normalization bias_add
            binary_crossentropy binary_focal_crossentropy cast cast_to_floatx
            categorical_crossentropy categorical_focal_crossentropy clip concatenate constant
            conv1d conv2d conv2d_transpose conv3d cos count_params ctc_batch_cost ctc_decode
            ctc_label_dense_to_sparse cumprod cumsum depthwise_conv2d dot dropout dtype elu equal
            exp expand_dims eye flatten gather greater greater_equal hard_sigmoid in_test_phase
            in_top_k in_train_phase int_shape is_sparse l2_normalize less less_equal local_conv1d
            local_conv2d log max maximum mean min minimum ndim normalize_batch_in_training
            not_equal one_hot ones ones_like permute_dimensions pool2d pool3d pow prod
            random_bernoulli random_binomial random_normal random_uniform relu repeat
            repeat_elements reshape resize_images resize_volumes reverse round separable_conv2d
            shape sigmoid sign sin softmax softplus softsign sparse_categorical_crossentropy
            spatial_2d_padding spatial_3d_padding sqrt square squeeze stack std stop_gradient sum
            switch tanh temporal_padding tile to_dense transpose truncated_normal var zeros
            zeros_like
        """,
    }.items()
    for name in names.split()
)

# Functions that only TensorFlow 1 has.
OLD_SYMBOLS = frozenset(
    prefix + name
    for prefix, names in {
        "compat.v1.": """
            accumulate_n angle arg_max arg_min assert_greater_equal assert_integer
            assert_less_equal assert_near assert_negative assert_non_negative assert_non_positive
            assert_none_equal assert_positive assert_rank_at_least assert_rank_in
            assert_same_float_dtype assert_scalar assert_type batch_gather batch_to_space_nd
            betainc bincount ceil check_numerics cholesky cholesky_solve clip_by_average_norm
            confusion_matrix conj count_nonzero cross cumprod depth_to_space dequantize diag
            diag_part digamma div div_no_nan erf erfc expm1 extract_image_patches
            fake_quant_with_min_max_args fake_quant_with_min_max_args_gradient
            fake_quant_with_min_max_vars fake_quant_with_min_max_vars_gradient
            fake_quant_with_min_max_vars_per_channel
            fake_quant_with_min_max_vars_per_channel_gradient fft fft2d fft3d floor_div floordiv
            floormod global_norm ifft ifft2d ifft3d igamma igammac imag invert_permutation
            is_finite is_inf is_nan is_non_decreasing is_numeric_tensor is_strictly_increasing
            lbeta lgamma lin_space log log1p log_sigmoid logical_xor matrix_band_part
            matrix_determinant matrix_diag matrix_diag_part matrix_inverse matrix_set_diag
            matrix_solve matrix_solve_ls matrix_transpose matrix_triangular_solve mod multinomial
            polygamma qr quantize quantize_v2 quantized_concat random_crop random_gamma
            random_normal random_poisson random_shuffle random_uniform real reciprocal reverse_v2
            rint rsqrt segment_max segment_mean segment_min segment_prod segment_sum
            self_adjoint_eig self_adjoint_eigvals setdiff1d space_to_depth sparse_add sparse_concat
            sparse_fill_empty_rows sparse_mask sparse_matmul sparse_maximum sparse_minimum
            sparse_reduce_max sparse_reduce_max_sparse sparse_reduce_sum sparse_reduce_sum_sparse
            sparse_reorder sparse_reset_shape sparse_reshape sparse_retain sparse_segment_mean
            sparse_segment_sqrt_n sparse_segment_sum sparse_slice sparse_softmax sparse_split
            sparse_tensor_dense_matmul sparse_tensor_to_dense sparse_to_dense sparse_to_indicator
            sparse_transpose squared_difference svd tensor_scatter_add tensor_scatter_sub
            tensor_scatter_update to_bfloat16 to_complex128 to_complex64 to_double to_float
            to_int32 to_int64 trace truncated_normal unsorted_segment_max unsorted_segment_mean
            unsorted_segment_min unsorted_segment_prod unsorted_segment_sqrt_n unsorted_segment_sum
            verify_tensor_all_finite where_v2 zeta
        """,
        "compat.v1.debugging.": """
            is_finite is_inf is_nan is_non_decreasing is_strictly_increasing
        """,
        "compat.v1.image.": """
            extract_image_patches resize_area resize_bicubic resize_bilinear
            resize_image_with_crop_or_pad resize_image_with_pad resize_images
            resize_nearest_neighbor transpose_image
        """,
        "compat.v1.linalg.": """
            transpose
        """,
        "compat.v1.manip.": """
            batch_to_space_nd gather_nd reshape reverse roll scatter_nd space_to_batch_nd tile
        """,
        "compat.v1.nn.": """
            avg_pool_v2 conv2d_backprop_filter conv2d_backprop_input conv3d_backprop_filter
            conv3d_backprop_filter_v2 ctc_beam_search_decoder_v2 ctc_loss_v2
            depthwise_conv2d_native depthwise_conv2d_native_backprop_filter
            depthwise_conv2d_native_backprop_input fused_batch_norm max_pool_v2 quantized_avg_pool
            quantized_conv2d quantized_max_pool quantized_relu_x relu_layer
            softmax_cross_entropy_with_logits_v2 xw_plus_b
        """,
        "compat.v1.random.": """
            multinomial stateless_multinomial
        """,
        "compat.v1.sparse.": """
            matmul reduce_max_sparse reduce_sum_sparse
        """,
        "compat.v1.spectral.": """
            dct fft fft2d fft3d idct ifft ifft2d ifft3d irfft irfft2d irfft3d rfft rfft2d rfft3d
        """,
    }.items()
    for name in names.split()
)

# Specs of tensors in the configs of SavedModels.
SPECS = frozenset({"tf.TensorSpec", "tf.RaggedTensorSpec", "tf.SparseTensorSpec"})
# Fields that name a file to be read, when they are text.
FILES = frozenset({"vocabulary", "vocabulary_file", "idf_weights", "filepath", "ckpt_to_load_from"})
# Fields that hold a function, its bytecode or where to find it. Of the classes above, the wrappers
# of cells and the numeric column have some; the others have none, so one in them is no mistake.
FUNCTION_FIELDS = frozenset(
    """
    conv_op dropout_fn dropout_fn_module dropout_fn_type dropout_state_filter_visitor fn function
    function_type lambda layer_creator module normalizer_fn output_shape_module output_shape_type
    pool_function residual_fn residual_fn_module residual_fn_type
    """.split()
)
# How Keras writes values that JSON has no form for.
VALUES = frozenset(
    """
    __bytes__ __ellipsis__ __keras_tensor__ __numpy__ __slice__ __tensor__ __tuple__
    CompositeTensor TensorShape TypeSpec
    """.split()
)
