// SPDX-FileCopyrightText: 2026 The ubfabric authors
// SPDX-License-Identifier: GPL-2.0-only

#ifndef UB_STRIDED_ARRAY_H
#define UB_STRIDED_ARRAY_H

#include <cstddef>
#include <new>
#include <type_traits>

namespace ns3
{

/**
 * @ingroup ub-fabric
 * @brief An array whose items lie a stride apart in memory that somebody else owns, so that the
 * items of several arrays with the same number can lie side by side.
 * @tparam T What the array holds; nobody destroys it.
 */
template <class T>
class UbStridedArray
{
    static_assert(std::is_trivially_destructible_v<T>, "nobody destroys the items");

  public:
    /**
     * Make the items.
     * @param [in] memory Where the first one is.
     * @param [in] strideBytes From one to the next.
     * @param [in] n How many.
     */
    void Place(std::byte* memory, size_t strideBytes, size_t n)
    {
        m_memory = memory;
        m_strideBytes = strideBytes;
        m_size = n;
        for (size_t i = 0; i < n; ++i)
        {
            new (memory + i * strideBytes) T();
        }
    }

    /**
     * @param [in] i Which.
     * @return The item.
     */
    T& operator[](size_t i)
    {
        return *std::launder(reinterpret_cast<T*>(m_memory + i * m_strideBytes));
    }

    /**
     * @param [in] i Which.
     * @return The item.
     */
    const T& operator[](size_t i) const
    {
        return *std::launder(reinterpret_cast<const T*>(m_memory + i * m_strideBytes));
    }

    /**
     * @param [in] item One of the items.
     * @return Which.
     */
    size_t IndexOf(const T& item) const
    {
        return (reinterpret_cast<const std::byte*>(&item) - m_memory) / m_strideBytes;
    }

    /**
     * @return How many there are.
     */
    size_t size() const
    {
        return m_size;
    }

    /**
     * @return Whether there are none.
     */
    bool empty() const
    {
        return m_size == 0;
    }

  private:
    std::byte* m_memory{nullptr}; //!< the first item
    size_t m_strideBytes{0};      //!< from one to the next
    size_t m_size{0};             //!< how many
};

} // namespace ns3

#endif // UB_STRIDED_ARRAY_H
