// SPDX-FileCopyrightText: 2026 The ubfabric authors
// SPDX-License-Identifier: GPL-2.0-only

#ifndef UB_HUGE_PAGES_H
#define UB_HUGE_PAGES_H

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <memory_resource>
#include <new>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace ns3
{

/**
 * @ingroup ub-fabric
 * @brief Memory for the arrays of a large plane, in huge pages where the system has them.
 *
 * A plane touches its arrays all over, a few cache lines a packet and hop. In pages of 4 KiB that
 * is a miss in the translation buffer each time, and an expensive one on virtual machines.
 *
 * Pieces are cut from blocks, one after another; those of small pieces are given back only when
 * all is. So this is for arrays that live as long as their owner.
 */
class UbHugePages : public std::pmr::memory_resource
{
  public:
    /**
     * @param [in] expectedBytes About how much will be asked for; little means ordinary pages.
     */
    explicit UbHugePages(size_t expectedBytes)
        : m_blockBytes(expectedBytes < PAGE_BYTES / 4 ? SMALL_BYTES : PAGE_BYTES)
    {
    }

    ~UbHugePages() override
    {
        for (void* block : m_blocks)
        {
            std::free(block);
        }
    }

    UbHugePages(const UbHugePages&) = delete;
    UbHugePages& operator=(const UbHugePages&) = delete;

    static constexpr size_t PAGE_BYTES = size_t{1} << 21; //!< a huge page

    /**
     * @param [in] bytes Bytes.
     * @return A block of memory; std::free takes it back.
     */
    static void* Block(size_t bytes)
    {
        if (bytes > size_t{PTRDIFF_MAX} - PAGE_BYTES)
        {
            throw std::bad_alloc();
        }
        const size_t unit = bytes < PAGE_BYTES ? SMALL_BYTES : PAGE_BYTES;
        const size_t whole = (bytes + unit - 1) / unit * unit;
        void* block = std::aligned_alloc(unit, whole);
        if (block == nullptr)
        {
            throw std::bad_alloc();
        }
#if defined(__linux__) && defined(MADV_HUGEPAGE)
        if (unit == PAGE_BYTES)
        {
            madvise(block, whole, MADV_HUGEPAGE); // a wish; without it all works as well
        }
#endif
        return block;
    }

  private:
    static constexpr size_t SMALL_BYTES = size_t{1} << 14; //!< a block where little is expected

    void* do_allocate(size_t bytes, size_t alignment) override
    {
        if (bytes >= m_blockBytes)
        {
            return Block(bytes);
        }
        size_t at = (m_used + alignment - 1) / alignment * alignment;
        if (m_blocks.empty() || at + bytes > m_blockBytes)
        {
            m_blocks.push_back(Block(m_blockBytes));
            at = 0;
        }
        m_used = at + bytes;
        return static_cast<std::byte*>(m_blocks.back()) + at;
    }

    void do_deallocate(void* piece, size_t bytes, size_t /* alignment */) override
    {
        if (bytes >= m_blockBytes)
        {
            std::free(piece);
        }
    }

    bool do_is_equal(const std::pmr::memory_resource& other) const noexcept override
    {
        return this == &other;
    }

    size_t m_blockBytes;         //!< size of a block
    size_t m_used{0};            //!< used bytes of the last block
    std::vector<void*> m_blocks; //!< blocks of small pieces
};

/**
 * @ingroup ub-fabric
 * @brief Gives arrays that come and go huge pages of their own, if they are large enough.
 * @tparam T What the array holds.
 */
template <class T>
struct UbHugePageAllocator
{
    using value_type = T; //!< what the array holds

    UbHugePageAllocator() = default;

    /// @param [in] other An allocator for something else; none has a state.
    template <class Other>
    UbHugePageAllocator(const UbHugePageAllocator<Other>& other [[maybe_unused]])
    {
    }

    /**
     * @param [in] n How many.
     * @return Memory for them.
     */
    T* allocate(size_t n)
    {
        return IsLarge(n) ? static_cast<T*>(UbHugePages::Block(n * sizeof(T)))
                          : std::allocator<T>().allocate(n);
    }

    /**
     * @param [in] at What allocate returned.
     * @param [in] n For how many.
     */
    void deallocate(T* at, size_t n)
    {
        if (IsLarge(n))
        {
            std::free(at);
            return;
        }
        std::allocator<T>().deallocate(at, n);
    }

    /**
     * @param [in] other Another allocator.
     * @return Whether it can give back what this one gave.
     */
    bool operator==(const UbHugePageAllocator& other [[maybe_unused]]) const
    {
        return true;
    }

  private:
    /**
     * @param [in] n How many.
     * @return Whether they are worth a huge page of their own.
     */
    static bool IsLarge(size_t n)
    {
        return n * sizeof(T) >= UbHugePages::PAGE_BYTES / 2;
    }
};

/// An array that comes and goes and may be large.
template <class T>
using UbHugeVector = std::vector<T, UbHugePageAllocator<T>>;

} // namespace ns3

#endif // UB_HUGE_PAGES_H
