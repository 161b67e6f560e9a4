// The selective scan's forward pass by a C++ compiler, as a yardstick for what this computer can do; the product does not use it.
// Rows (L, D) for u, delta, z, out and (L, N) for B, C; A is (D, N). D is a multiple of 16, N of 4.
// Built by bench_scan.py: g++ -O3 -march=native -ffast-math -fopenmp -shared -fPIC

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

constexpr int kLanes = 16, kTile = 64, kGroup = 4, kBlocksPerTask = 4;
typedef float Vector __attribute__((vector_size(64), aligned(4)));
typedef std::int32_t Integers __attribute__((vector_size(64)));

Vector spread(float value) { return Vector{} + value; }

Vector load(const float* at) {
    Vector value;
    std::memcpy(&value, at, sizeof value);
    return value;
}

// 2**x for x <= 0: the coefficients of vector_ir.py.
Vector exp2_of(Vector x) {
    x = x > spread(-126.0f) ? x : spread(-126.0f);
    const Integers whole = __builtin_convertvector(x - 0.5f, Integers);  // rounds toward zero, and x <= 0
    const Vector rest = x - __builtin_convertvector(whole, Vector);
    Vector power = spread(1.326472731e-3f);
    for (float coefficient : {9.671512991e-3f, 5.550733581e-2f, 2.402224243e-1f, 6.931470037e-1f, 1.0f})
        power = power * rest + coefficient;
    Integers bits;
    std::memcpy(&bits, &power, sizeof bits);
    bits += whole << 23;
    std::memcpy(&power, &bits, sizeof power);
    return power;
}

}  // namespace

extern "C" void scan(std::int64_t length, std::int64_t channels, std::int64_t states, const float* u, const float* delta,
                     const float* A, const float* B, const float* C, const float* skip, const float* z, const float* bias,
                     float* out) {
    const std::int64_t blocks = channels / kLanes;
#pragma omp parallel for schedule(dynamic)
    for (std::int64_t first = 0; first < blocks; first += kBlocksPerTask) {
        const std::int64_t last = std::min(first + kBlocksPerTask, blocks);
        std::vector<float> h((last - first) * states * kLanes, 0.0f), rates((last - first) * states * kLanes);
        for (std::int64_t d = first * kLanes; d < last * kLanes; ++d)
            for (std::int64_t n = 0; n < states; ++n)
                rates[((d / kLanes - first) * states + n) * kLanes + d % kLanes] = A[d * states + n];
        float delta2[kTile][kLanes], input[kTile][kLanes], y[kTile][kLanes];
        for (std::int64_t start = 0; start < length; start += kTile) {
            const int steps = static_cast<int>(std::min<std::int64_t>(kTile, length - start));
            for (std::int64_t block = first; block < last; ++block) {
                for (int t = 0; t < steps; ++t) {
                    const std::int64_t at = (start + t) * channels + block * kLanes;
#pragma omp simd
                    for (int lane = 0; lane < kLanes; ++lane) {
                        const float raw = delta[at + lane] + bias[block * kLanes + lane];
                        const float soft = std::max(raw, 0.0f) + log1pf(expf(-fabsf(raw)));
                        delta2[t][lane] = soft * 1.44269504f;
                        input[t][lane] = soft * u[at + lane];
                        y[t][lane] = skip[block * kLanes + lane] * u[at + lane];
                    }
                }
                for (std::int64_t n0 = 0; n0 < states; n0 += kGroup) {
                    const std::int64_t place = ((block - first) * states + n0) * kLanes;
                    Vector state[kGroup], rate[kGroup];
                    for (int n = 0; n < kGroup; ++n) {
                        state[n] = load(&h[place + n * kLanes]);
                        rate[n] = load(&rates[place + n * kLanes]);
                    }
                    for (int t = 0; t < steps; ++t) {
                        const float* b = B + (start + t) * states + n0;
                        const float* c = C + (start + t) * states + n0;
                        const Vector step = load(delta2[t]), in = load(input[t]);
                        Vector sum = load(y[t]);
                        for (int n = 0; n < kGroup; ++n) {
                            state[n] = exp2_of(step * rate[n]) * state[n] + in * b[n];
                            sum += state[n] * c[n];
                        }
                        std::memcpy(y[t], &sum, sizeof sum);
                    }
                    for (int n = 0; n < kGroup; ++n) std::memcpy(&h[place + n * kLanes], &state[n], sizeof(Vector));
                }
                for (int t = 0; t < steps; ++t) {
                    const std::int64_t at = (start + t) * channels + block * kLanes;
#pragma omp simd
                    for (int lane = 0; lane < kLanes; ++lane)
                        out[at + lane] = y[t][lane] * z[at + lane] / (1.0f + expf(-z[at + lane]));
                }
            }
        }
    }
}
